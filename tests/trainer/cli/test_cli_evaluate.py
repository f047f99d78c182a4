"""`vlkd evaluate` as a user runs it, and every command of docs/evaluation.md on small data under the Hub's names."""

import json
import re
import shlex
import sys
from pathlib import Path

import evaluation_data as data
import pytest
import yaml
from datasets import Dataset

from microworld.exam import write_task
from trainer.cli import main
from trainer.evaluation.metrics_file import load_metrics
from trainer.evaluation.scoring import caption_report, score_vqa
from trainer.evaluation.tasks.task import FOLDER

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^vlkd evaluate .+$", DOC, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def world(images, micro_dir, tmp_path_factory) -> Path:
    """A folder with all that the page's commands name."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, target in (
        ("my_model", micro_dir),
        ("facebook/bart-base", ROOT / "microworld" / "teachers" / "bart"),
        ("openai/clip-vit-base-patch16", ROOT / "microworld" / "teachers" / "clip"),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    vqav2 = data.vqav2(images)
    for name, splits in (
        ("lmms-lab/VQAv2", {"validation": vqav2, "testdev": data.vqav2(images, answers=False)}),
        ("lmms-lab/OK-VQA", {"val2014": data.okvqa(images)}),
        (
            "yerevann/coco-karpathy",
            {"test": data.coco_karpathy([str(folder / "val2014" / data.coco_name(n)) for n in range(4)])},
        ),
        ("lmms-lab/NoCaps", {"validation": data.nocaps(images), "test": data.nocaps(images, captions=False)}),
        ("royokong/flickr30k_test", {"test": data.flickr30k(images)}),
        ("my_questions", {"train": vqav2.rename_column("question", "asked")}),
        ("my_text", {"test": Dataset.from_dict({"text": ["a red circle", "two blue squares on a white background"]})}),
    ):
        data.save(splits, folder / name)
    data.save_images(images, folder)
    for name, names in (("nocaps_images", lambda n: f"{n:016x}.jpg"), ("flickr30k-images", data.coco_name)):
        data.save_images(images, folder / name, names)
    questions, annotations = data.vqa_files(vqav2, folder)
    Path(questions).rename(folder / "v2_OpenEnded_mscoco_val2014_questions.json")
    Path(annotations).rename(folder / "v2_mscoco_val2014_annotations.json")
    data.coco_captions(4, folder / "captions_val2014.json")
    data.nocaps_captions(4, folder / "nocaps_val_4500_captions.json")
    data.karpathy(4, folder / "dataset_coco.json", "coco")
    data.karpathy(4, folder / "dataset_flickr30k.json", "flickr30k")
    own = yaml.safe_load((FOLDER / "vqav2.yaml").read_text())
    own["metric"], own["strategies"] = "my_metric:shortest", ["direct"]
    (folder / "my_task.yaml").write_text(yaml.safe_dump(own))
    for task in ("microworld", "text-retention"):
        write_task(folder / f"{task}.yaml", name=task, size=100)
    (folder / "my_metric.py").write_text(
        "def shortest(rows, texts):\n"
        "    value = min(map(len, texts)) + len(rows[0]['answers'])\n"
        "    return [{'metric': 'length', 'row': 'all', 'value': value, 'n': len(rows), 'low': 0, 'high': 99}]\n"
    )
    return folder


@pytest.fixture
def here(world, monkeypatch) -> Path:
    """The working directory; Java, where there is some, is out of sight, because it takes its time."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(str(world))
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)  # another test imports its own
    return world


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(["evaluate", *argv])
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("vlkd: error: ")]
    return code, output.out, "".join(errors)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(here, tmp_path, capsys, command):
    small = {"microworld": "microworld.yaml", "text-retention": "text-retention.yaml", "100": "6"}  # of 100 scenes
    words = [small.get(word, word) for word in shlex.split(command)[1:]]
    if {"text-retention.yaml", "unseen_artist"} & set(words):  # whole, they take a minute
        words += ["--limit", "6"]
    folder = Path("evaluation", Path(words[words.index("--task") + 1]).stem)
    if "--output_dir" in words:
        folder = Path(words[words.index("--output_dir") + 1])
    assert main(words) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    if "--predictions_only" in words:
        assert "without scores" in out and not (folder / "metrics.json").exists()
        return
    metrics = load_metrics(folder / "metrics.json")
    assert set(shlex.split(metrics["command"])) == {"vlkd", *words, "--dtype", metrics["dtype"]}
    assert f"Computed on {metrics['device']}, {metrics['dtype']}" in out
    for name, value in (("--task", "task"), ("--limit", "limit")):
        if name in words:
            assert str(metrics[value]) == words[words.index(name) + 1].removesuffix(".yaml")
            assert name != "--limit" or f"the first {metrics['limit']} rows only" in out
    assert all(step["prompt"] in out for task in metrics["settings"].values() for step in task["steps"].values())


def test_vqa(here, tmp_path, capsys, images):
    code, out, _ = run(capsys, "--model", "my_model", "--task", "vqav2", "--output_dir", str(tmp_path))
    metrics = load_metrics(tmp_path / "metrics.json")
    conditions = ["direct", "caption-then-answer", "blind"]
    assert code == 0 and list(dict.fromkeys(f["condition"] for f in metrics["figures"])) == conditions
    assert (metrics["dataset"], metrics["split"], metrics["limit"]) == ("lmms-lab/VQAv2", "validation", None)
    steps = metrics["settings"]["vqav2"]["steps"]
    assert list(steps) == ["answer", "caption", "answer_from_caption"]
    assert steps["caption"] == {
        "prompt": "<mask>",
        "num_beams": 5,
        "length_penalty": 1.0,
        "max_new_tokens": 40,
        "normalization": "none",
    }
    assert "caption: prompt '<mask>', num_beams 5, length_penalty 1.0, max_new_tokens 40, normalization 'none'" in out
    rows = list(data.vqav2(images).remove_columns("image"))
    for strategy in conditions:
        results = json.loads((tmp_path / f"vqav2.{strategy}.json").read_text())
        assert [list(result) for result in results] == [["question_id", "answer"]] * 8
        assert [result["question_id"] for result in results] == [row["question_id"] for row in rows]
        official = score_vqa("v2_mscoco_val2014_annotations.json", results)  # the very same examples
        assert_figures(metrics, strategy, [f for f in official if f["row"] in {f["row"] for f in metrics["figures"]}])


def assert_figures(metrics: dict, condition: str, expected: list[dict]) -> None:
    found = {(f["metric"], f["row"]): f for f in metrics["figures"] if f["condition"] == condition}
    assert expected
    for figure in expected:
        same = found[figure["metric"], figure["row"]]
        assert same["n"] == figure["n"] and same["value"] == pytest.approx(figure["value"], abs=1e-4)


def test_the_right_answers_score_as_much_as_they_should(here, tmp_path, capsys):
    """The log of a run, with answers put in whose accuracy is worked out by hand."""
    options = ("--model", "my_model", "--task", "vqav2", "--strategy", "direct", "--output_dir", str(tmp_path))
    assert run(capsys, *options)[0] == 0
    (log,) = tmp_path.glob("*.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:  # "red" was said by 7 of 10, "blue" by one
        record["text"] = "Red. Question" if record["id"] % 1000 == 0 else "blue"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(capsys, *options)[0] == 0
    figures = load_metrics(tmp_path / "metrics.json")["figures"]
    # 7 or more others agree with "red": 1. One agrees with "blue", leaving one out: 9 of 10 times 1/3, once none: 0.3.
    (overall,) = (f for f in figures if f["row"] == "all")
    assert (overall["value"], overall["n"]) == (0.65, 8)


def test_nocaps_by_domain(here, tmp_path, capsys):
    options = ("--annotations", "nocaps_val_4500_captions.json", "--output_dir", str(tmp_path))
    assert run(capsys, "--model", "my_model", "--task", "nocaps", *options)[0] == 0
    metrics = load_metrics(tmp_path / "metrics.json")
    results = json.loads((tmp_path / "nocaps.direct.json").read_text())
    assert [list(result) for result in results] == [["image_id", "caption"]] * 4
    references = json.loads(Path("nocaps_val_4500_captions.json").read_text())
    assert_figures(metrics, "direct", caption_report(references, results)["figures"])
    for domain, ids in (("in-domain", {0, 3}), ("near-domain", {1}), ("out-domain", {2})):
        part = {
            "images": [image for image in references["images"] if image["id"] in ids],
            "annotations": [a for a in references["annotations"] if a["image_id"] in ids],
        }
        figures = caption_report(part, [result for result in results if result["image_id"] in ids])["figures"]
        assert_figures(metrics, "direct", [{**figure, "row": f"{figure['row']}, {domain}"} for figure in figures])


def test_retrieval_and_its_control(here, tmp_path, capsys):
    options = ("--model", "my_model", "--task", "flickr30k-retrieval", "--output_dir", str(tmp_path))
    assert run(capsys, *options, "--clip", "openai/clip-vit-base-patch16")[0] == 0
    figures = load_metrics(tmp_path / "metrics.json")["figures"]
    assert {f["condition"] for f in figures} == {"direct", "CLIP's own text tower"}
    assert len(figures) == 2 * 6
    assert run(capsys, *options)[0] == 0
    assert {f["condition"] for f in load_metrics(tmp_path / "metrics.json")["figures"]} == {"direct"}


def test_predictions_only(here, tmp_path, capsys):
    options = ("--model", "my_model", "--task", "vqav2", "--split", "testdev", "--strategy", "direct")
    code, out, error = run(capsys, *options, "--output_dir", str(tmp_path))
    assert code == 2 and "question_id 42000 has no answers" in error and "--predictions_only" in error
    assert not list(tmp_path.iterdir())
    code, out, _ = run(capsys, *options, "--output_dir", str(tmp_path), "--predictions_only")
    assert code == 0 and "without scores" in out
    results = json.loads((tmp_path / "vqav2.direct.json").read_text())
    assert [result["question_id"] for result in results] == [
        (42 + number) * 1000 + kind for kind in (0, 1) for number in range(4)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "vqa"], "--task 'vqa' is unknown; choose one of coco-caption, flickr30k-retrieval, microworld"),
        (["--task", "none.yaml"], "--task none.yaml cannot be read"),
        (["--task", "vqav2", "--strategy", "guess"], "invalid choice: 'guess'"),
        (["--task", "nocaps", "--strategy", "direct"], "task 'nocaps' does not use --strategy"),
        (["--task", "vqav2", "--limit", "0"], "--limit 0 must be 1 or more"),
        (["--task", "vqav2", "--limit", "-3"], "--limit -3 must be 1 or more"),
        (["--task", "vqav2", "--batch_size", "0"], "--batch_size 0 must be 1 or more"),
        (["--task", "vqav2", "--split", "tset"], "has no split 'tset'; it has validation, testdev"),
        (["--task", "vqav2", "--columns", "image"], "must be a mapping such as '{image: photo}'"),
        (["--task", "vqav2", "--columns", "{image: ["], "--columns '{image: [' cannot be read"),
        (["--task", "vqav2", "--reference_model", "x"], "task 'vqav2' does not use --reference_model"),
        (["--task", "vqav2", "--clip", "x"], "task 'vqav2' does not use --clip"),
        (["--task", "microworld", "--dataset_name", "x"], "task 'microworld' does not use --dataset_name"),
        (["--task", "microworld", "--split", "tset"], "split='tset' is unknown: choose one of train, validation"),
        (["--task", "flickr30k-retrieval", "--predictions_only"], "does not use --predictions_only"),
        (["--task", "flickr30k-retrieval", "--clip", "lmms-lab"], "lmms-lab"),
        (
            ["--task", "vqav2", "--dataset_name", "my_text", "--split", "test"],
            "dataset 'my_text' has no column 'image'",
        ),
    ],
)
def test_bad_input_is_one_line(here, tmp_path, capsys, options, message):
    code, _, error = run(capsys, "--model", "my_model", *options, "--output_dir", str(tmp_path / "out"))
    assert code == 2 and message in error


def test_no_model(here, capsys):
    assert "required: --model" in run(capsys, "--task", "vqav2")[2]
    bart = "facebook/bart-base"  # a folder here
    assert f"--model: '{bart}' is not a VLKD" in run(capsys, "--task", "vqav2", "--model", bart)[2]
