"""The files of the tasks, and rows read from datasets in the schemas of the Hub and from the official files."""

import json
from dataclasses import replace
from pathlib import Path

import evaluation_data as data
import pytest
import yaml
from datasets import Dataset
from PIL import Image, ImageChops

from modeling_vlkd.processing_vlkd import VQA_PROMPT
from trainer.evaluation.datasets import DatasetOverrides, load_examples
from trainer.evaluation.runner import (
    normalize,
)
from trainer.evaluation.tasks.task import FOLDER, Step, load_task, task_names


def task_of(name: str):
    return load_task(name)[0]


def same_image(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


# ------------------------------------------------------------------------------------------------------------- files


def test_the_tasks():
    assert task_names() == [
        "coco-caption",
        "flickr30k-retrieval",
        "microworld",
        "nocaps",
        "okvqa",
        "text-retention",
        "vqav2",
    ]
    assert [task.name for task in load_task("microworld")] == [
        "microworld-vqa",
        "microworld-knowledge",
        "microworld-shuffled",
        "microworld-captions",
        "microworld-retrieval",
    ]


@pytest.mark.parametrize("name", ["vqav2", "okvqa", "microworld"])
def test_prompts_are_the_processors(name):
    steps = task_of(name).steps
    assert steps["answer"].prompt == VQA_PROMPT
    assert steps["answer_from_caption"].prompt == f"{{caption}}. {VQA_PROMPT}"
    assert steps["caption"].prompt == "<mask>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": {}}, "own.yaml: parts must hold one task or more"),
        ({"parts": ["a"]}, "own.yaml: parts must hold one task or more"),
        ({"kind": "vqa2"}, "own.yaml: kind: 'vqa2' is unknown; choose from vqa, captions"),
        ({"metrics": "vqa"}, "own.yaml: task 'own' has the unknown key `metrics`"),
        ({"metric": None}, "own.yaml: task 'own' lacks the key `metric`"),
        ({"columns": {"image": "image"}}, "own.yaml: columns lacks the key `question`"),
        ({"strategies": ["guess"]}, "own.yaml: unknown strategy 'guess'; choose from direct"),
        ({"strategies": ["caption-then-answer"]}, "requires the step `caption`"),
        (
            {"steps": {"answer": {"prompt": "{question}"}}},
            "answer: prompt: '{question}' must have <mask> and {question}",
        ),
        ({"steps": {"answer": {"prompt": "<mask>"}}}, "prompt: '<mask>' must have <mask> and {question}"),
        ({"steps": {"answer": {"prompt": "{question}{x}<mask>"}}}, "and no other placeholder"),
        ({"steps": {"answer": {"prompt": "{question}<mask>", "beams": 5}}}, "answer has the unknown key `beams`"),
        (
            {"steps": {"answer": {"prompt": "{question}<mask>", "num_beams": 0}}},
            "num_beams and max_new_tokens must be 1",
        ),
        (
            {"steps": {"answer": {"prompt": "{question}<mask>", "normalization": "x"}}},
            "choose from none, first_sentence",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, change, message):
    content = yaml.safe_load((FOLDER / "vqav2.yaml").read_text())
    content |= {"strategies": ["direct"], "steps": {"answer": content["steps"]["answer"]}} | change
    content = {key: value for key, value in content.items() if value is not None}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=".") as error:
        load_task(str(tmp_path / "own.yaml"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "normalization", "expected"),
    [
        ("red. Question: how", "first_sentence", "red"),
        ("red.", "first_sentence", "red"),
        ("3.5 metres! Yes", "first_sentence", "3.5 metres"),
        ("a dog. a\n cat ", "none", "a dog. a cat"),
        ("", "first_sentence", ""),
    ],
)
def test_normalization(text, normalization, expected):
    assert normalize(text, Step("<mask>", normalization=normalization)) == expected


# ------------------------------------------------------------------------------------------------------- the Hub's


def test_vqav2(images, tmp_path):
    folder = data.save({"validation": data.vqav2(images)}, tmp_path / "hub")
    examples = load_examples(task_of("vqav2"), DatasetOverrides(folder))
    assert (examples.dataset, examples.split, len(examples.rows)) == (folder, "validation", 8)
    assert examples.rows[4] == {
        "image_id": 42,
        "question_id": 42001,
        "question": "how many squares are there?",
        "answers": data.ANSWERS,
        "question_type": "how many",
        "answer_type": "number",
    }
    assert all(same_image(examples.image(number), images[number % 4]) for number in range(8))


def test_okvqa_tells_images_by_their_bytes(images, tmp_path):
    folder = data.save({"val2014": data.okvqa(images)}, tmp_path / "hub")
    rows = load_examples(task_of("okvqa"), DatasetOverrides(folder)).rows
    assert [row["question_id"] for row in rows] == [420, 430, 440, 450, 421, 431, 441, 451]
    ids = [row["image_id"] for row in rows]
    assert ids[:4] == ids[4:] and len(set(ids)) == 4
    assert rows[0]["answers"] == data.ANSWERS


def test_coco_captions_fetch_their_images(images, web, tmp_path):
    urls = []
    for number, image in enumerate(images):
        image.save(tmp_path / "image.png")
        urls.append(web.add(f"/{number}.png", (tmp_path / "image.png").read_bytes()))
    folder = data.save({"test": data.coco_karpathy(urls)}, tmp_path / "hub")
    examples = load_examples(task_of("coco-caption"), DatasetOverrides(folder))
    assert examples.rows[1] == {"image_id": 43, "captions": data.captions_of(1)}
    assert all(same_image(examples.image(number), images[number]) for number in range(4))


def test_coco_captions_with_a_folder_of_images(images, tmp_path):
    folder = data.save({"test": data.coco_karpathy(["http://127.0.0.1:9/none"] * 4)}, tmp_path / "hub")
    where = DatasetOverrides(folder, images=data.save_images(images, tmp_path / "coco"))
    examples = load_examples(task_of("coco-caption"), where)
    assert examples.rows[3] == {"image_id": 45, "captions": data.captions_of(3)}
    assert all(same_image(examples.image(number), images[number]) for number in range(4))


def test_nocaps_takes_its_domains_from_the_official_file(images, tmp_path):
    folder = data.save({"validation": data.nocaps(images)}, tmp_path / "hub")
    rows = load_examples(task_of("nocaps"), DatasetOverrides(folder)).rows
    assert rows[2] == {"image_id": 2, "captions": data.captions_of(2)}
    annotations = data.nocaps_captions(4, tmp_path / "nocaps_val_4500_captions.json")
    rows = load_examples(task_of("nocaps"), DatasetOverrides(folder, annotations=annotations)).rows
    assert [row["domain"] for row in rows] == ["in-domain", "near-domain", "out-domain", "in-domain"]


def test_flickr30k(images, tmp_path):
    folder = data.save({"test": data.flickr30k(images)}, tmp_path / "hub")
    examples = load_examples(task_of("flickr30k-retrieval"), DatasetOverrides(folder))
    assert examples.rows[2] == {"image_id": 2, "captions": data.captions_of(2)}
    assert same_image(examples.image(2), images[2])


# -------------------------------------------------------------------------------------------------- official files


def test_vqas_official_files_give_the_same_rows(images, tmp_path):
    dataset = data.vqav2(images)
    questions, annotations = data.vqa_files(dataset, tmp_path)
    where = DatasetOverrides(
        questions=questions, annotations=annotations, images=data.save_images(images, tmp_path / "coco")
    )
    examples = load_examples(task_of("vqav2"), where)
    hub = load_examples(task_of("vqav2"), DatasetOverrides(data.save({"validation": dataset}, tmp_path / "hub")))
    assert examples.rows == hub.rows
    assert (examples.dataset, examples.split) == (questions, "val2014")
    assert all(same_image(examples.image(number), images[number % 4]) for number in range(8))


def test_test_dev_asks_about_images_of_test(images, tmp_path):
    questions, _ = data.vqa_files(data.vqav2(images, answers=False), tmp_path, "test-dev2015")
    folder = data.save_images(images, tmp_path / "coco", lambda number: f"COCO_test2015_{42 + number:012d}.jpg")
    examples = load_examples(
        task_of("vqav2"), DatasetOverrides(questions=questions, images=folder), need_references=False
    )
    assert examples.split == "test-dev2015" and same_image(examples.image(1), images[1])


@pytest.mark.parametrize("name", ["coco-caption", "flickr30k-retrieval"])
def test_karpathys_splits(images, tmp_path, name):
    annotations = data.karpathy(4, tmp_path / "dataset.json", name.split("-")[0])
    folder = data.save_images(images, tmp_path / "coco")
    examples = load_examples(task_of(name), DatasetOverrides(annotations=annotations, images=folder))
    first = 42 if name == "coco-caption" else 0
    assert examples.rows == [{"image_id": first + n, "captions": data.captions_of(n)} for n in range(3)]
    assert examples.split == "test" and same_image(examples.image(2), images[2])
    other = load_examples(task_of(name), DatasetOverrides(annotations=annotations, images=folder, split="train"))
    assert [row["image_id"] for row in other.rows] == [first + 3]


def test_cocos_and_nocaps_captions(images, tmp_path):
    folder = data.save_images(images, tmp_path / "coco")
    where = DatasetOverrides(annotations=data.coco_captions(4, tmp_path / "captions_val2014.json"), images=folder)
    examples = load_examples(task_of("coco-caption"), where)
    assert examples.rows[3] == {"image_id": 45, "captions": data.captions_of(3)}
    assert examples.split == "captions_val2014" and same_image(examples.image(3), images[3])
    folder = data.save_images(images, tmp_path / "nocaps", lambda number: f"{number:016x}.jpg")
    where = DatasetOverrides(annotations=data.nocaps_captions(4, tmp_path / "nocaps.json"), images=folder)
    examples = load_examples(task_of("nocaps"), where)
    assert examples.rows[2] == {"image_id": 2, "captions": data.captions_of(2), "domain": "out-domain"}
    assert same_image(examples.image(2), images[2])


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def vqa_dir(images, tmp_path) -> str:
    return data.save({"validation": data.vqav2(images)}, tmp_path / "hub")


def complaint(name: str, where: DatasetOverrides, **options) -> str:
    with pytest.raises(ValueError, match=".") as error:
        load_examples(task_of(name), where, **options)
    return str(error.value)


def test_another_column_name(images, tmp_path):
    folder = data.save({"validation": data.vqav2(images).rename_column("question", "asked")}, tmp_path / "other")
    message = complaint("vqav2", DatasetOverrides(folder))
    assert (
        f"--columns '{{question: NAME}}': dataset '{folder}' has no column 'question'; it has question_type, "
        in message
    )
    rows = load_examples(
        task_of("vqav2"), DatasetOverrides(folder, columns={"question": "asked", "question_type": None})
    ).rows
    assert rows[0]["question"] == data.QUESTIONS[0] and "question_type" not in rows[0]


def test_options_that_contradict_the_task(vqa_dir, tmp_path):
    assert "unknown name 'photo'; this task has image, " in complaint(
        "vqav2", DatasetOverrides(vqa_dir, columns={"photo": "x"})
    )
    assert "requires 'question'" in complaint("vqav2", DatasetOverrides(vqa_dir, columns={"question": None}))
    assert "has no split 'test'; it has validation" in complaint("vqav2", DatasetOverrides(vqa_dir, "test"))
    assert "requires --images" in complaint("vqav2", DatasetOverrides(questions="q.json"))
    assert "either --dataset_name or official" in complaint(
        "vqav2", DatasetOverrides(vqa_dir, questions="q.json", images="x")
    )
    assert "requires --questions and --images" in complaint("vqav2", DatasetOverrides(annotations="a.json"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_answers_that_look_like_numbers_or_missing(images, tmp_path, kind):
    rows = [
        {"file_name": f"{n}.png", "number": 7 + n, "question": question, "answer": answer}
        for n, (question, answer) in enumerate([("which year?", 1984), ("is it?", True), ("who?", "None"), (7, "N/A")])
    ]
    for row, image in zip(rows, images, strict=True):
        image.save(tmp_path / row["file_name"])
    if kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
    columns = {"question_id": "number", "image_id": None, "question_type": None, "answer_type": None}
    examples = load_examples(
        task_of("vqav2"), DatasetOverrides(str(tmp_path), "train", columns=columns | {"answers": "answer"})
    )
    found = [(row["question_id"], row["question"], row["answers"]) for row in examples.rows]
    true = "True" if kind == "csv" else "true"
    assert found == [(7, "which year?", ["1984"]), (8, "is it?", [true]), (9, "who?", ["None"]), (10, "7", ["N/A"])]
    assert same_image(examples.image(3), images[3])


def test_a_row_without_an_id(images, tmp_path):
    rows = Dataset.from_list([{**data.vqav2(images)[0], "question_id": None}], features=data.VQAV2)
    folder = data.save({"validation": rows}, tmp_path / "none")
    assert "a row has no question_id" in complaint("vqav2", DatasetOverrides(folder))


def test_double_ids(images, tmp_path):
    twice = Dataset.from_list([*data.vqav2(images), data.vqav2(images)[2]], features=data.VQAV2)
    folder = data.save({"validation": twice}, tmp_path / "twice")
    assert "question_id 44000 occurs twice" in complaint("vqav2", DatasetOverrides(folder))


def test_a_split_without_references(images, tmp_path):
    folder = data.save({"testdev": data.vqav2(images, answers=False)}, tmp_path / "testdev")
    message = complaint("vqav2", DatasetOverrides(folder, "testdev"))
    assert f"{folder} (testdev): question_id 42000 has no answers" in message and "--predictions_only" in message
    assert len(load_examples(task_of("vqav2"), DatasetOverrides(folder, "testdev"), need_references=False).rows) == 8
    folder = data.save({"test": data.nocaps(images, captions=False)}, tmp_path / "test")
    assert "image_id 0 has no captions" in complaint("nocaps", DatasetOverrides(folder, "test"))


def test_missing_images(images, tmp_path):
    questions, annotations = data.vqa_files(data.vqav2(images), tmp_path)
    folder = data.save_images(images[:2], tmp_path / "coco")
    where = DatasetOverrides(questions=questions, annotations=annotations, images=folder)
    message = complaint("vqav2", where)
    assert f"--images {folder} lacks 2 of the 4 images of {questions}, such as '44'" in message
    assert len(load_examples(task_of("vqav2"), replace(where, limit=2)).rows) == 2
    assert "is not a folder with images" in complaint("vqav2", replace(where, images=str(tmp_path / "none")))


def test_an_image_that_a_row_lacks_or_that_is_broken(images, tmp_path):
    rows = list(data.vqav2(images))
    rows[1]["image"], rows[2]["image"] = None, {"bytes": b"no image", "path": None}
    examples = load_examples(
        task_of("vqav2"),
        DatasetOverrides(data.save({"validation": Dataset.from_list(rows, features=data.VQAV2)}, tmp_path / "a")),
    )
    with pytest.raises(ValueError, match=r"a: image 43 is missing"):
        examples.image(1)
    with pytest.raises(ValueError, match=r"a: image 44 .*cannot be read"):
        examples.image(2)


def test_official_files_of_the_wrong_kind(images, tmp_path):
    questions, annotations = data.vqa_files(data.vqav2(images), tmp_path)
    folder = data.save_images(images, tmp_path / "coco")
    swapped = DatasetOverrides(questions=annotations, annotations=questions, images=folder)
    assert f"--questions {annotations} must hold a non-empty list of `questions`" in complaint("vqav2", swapped)
    content = json.loads(Path(annotations).read_text())
    content["annotations"].pop(3)
    Path(annotations).write_text(json.dumps(content))
    where = DatasetOverrides(questions=questions, annotations=annotations, images=folder)
    assert f"{annotations} has no question_id 45000 of --questions {questions}" in complaint("vqav2", where)
    assert "cannot be read as JSON" in complaint("vqav2", replace(where, questions=str(tmp_path / "none.json")))
    karpathy = data.karpathy(4, tmp_path / "dataset.json", "coco")
    message = complaint("coco-caption", DatasetOverrides(annotations=karpathy, images=folder, split="val"))
    assert "has no split 'val'; set --split to one of test, train" in message
    no_captions = data.write(tmp_path / "info.json", {"images": [{"id": 42, "file_name": data.coco_name(0)}]})
    assert "image_id 42 has no captions" in complaint(
        "coco-caption", DatasetOverrides(annotations=no_captions, images=folder)
    )
