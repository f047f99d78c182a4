"""The texts and embeddings of the runner: the same as the model writes alone, each image encoded once, resumable."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import evaluation_data as data
import pytest
import torch
from PIL import Image

from trainer.evaluation.datasets import DatasetOverrides, load_examples
from trainer.evaluation.runner import (
    CLIP_TEXT,
    GenerationLog,
    clip_text_embeds,
    embed_all,
    generate_all,
    normalize,
    retrieve,
)
from trainer.evaluation.scoring import score_task
from trainer.evaluation.tasks.task import Step, load_task


def task_of(name: str):
    return load_task(name)[0]


def with_strategies(task, *names: str):
    return replace(task, strategies=names)


@pytest.fixture
def vqa_dir(images, tmp_path) -> str:
    return data.save({"validation": data.vqav2(images)}, tmp_path / "hub")


def written_alone(model, processor, image: Image.Image, prompt: str | None, step: Step) -> str:
    """By the processor and `generate`, with no help of ours."""
    inputs = processor(images=image, text=prompt)
    options = {"length_penalty": step.length_penalty} if step.num_beams > 1 else {}
    ids = model.generate(
        **inputs, num_beams=step.num_beams, max_new_tokens=step.max_new_tokens, do_sample=False, **options
    )
    first = step.normalization == "first_sentence"
    return " ".join(processor.post_process_generation(ids, inputs["input_ids"], first_sentence=first)[0].split())


def test_answers_are_the_models(model, processor, images, vqa_dir, tmp_path):
    task = task_of("vqav2")
    examples = load_examples(task, DatasetOverrides(vqa_dir))
    texts = generate_all(model, processor, with_strategies(task, "direct", "blind"), examples, tmp_path, batch_size=1)
    prompts = [processor.build_vqa_prompt(row["question"]) for row in examples.rows]
    step = task.steps["answer"]
    alone = [
        written_alone(model, processor, images[number % 4], prompt, step) for number, prompt in enumerate(prompts)
    ]
    assert texts["direct"] == alone and len(set(alone)) > 2
    assert len(set(texts["blind"])) <= 2 and texts["blind"] != texts["direct"]


def test_captions_are_the_models(model, processor, images, tmp_path):
    task = task_of("nocaps")
    examples = load_examples(task, DatasetOverrides(data.save({"validation": data.nocaps(images)}, tmp_path / "hub")))
    texts = generate_all(model, processor, task, examples, tmp_path)
    assert texts["direct"] == [written_alone(model, processor, i, None, task.steps["caption"]) for i in images]
    assert len(set(texts["blind"])) == 1


def test_caption_then_answer_reads_the_caption_as_plain_text(model, processor, images, vqa_dir, tmp_path):
    task = task_of("vqav2")
    steps = {**task.steps, "caption": replace(task.steps["caption"], max_new_tokens=6, num_beams=2)}
    task = replace(task, steps=steps)
    examples = load_examples(task, DatasetOverrides(vqa_dir))
    texts = generate_all(model, processor, with_strategies(task, "caption-then-answer"), examples, tmp_path)[
        "caption-then-answer"
    ]
    bart = model.to_bart().eval()
    plain = {"num_beams": 1, "no_repeat_ngram_size": 0, "forced_eos_token_id": None}  # the tiny BART has its own
    for number in (0, 5):
        caption = written_alone(model, processor, images[number % 4], None, steps["caption"]).rstrip(". ")
        before = f"{caption}. Question: {examples.rows[number]['question']} Answer:"
        start = torch.tensor([[2, *processor.tokenizer(before).input_ids[:-1]]])
        inputs = processor.tokenizer(f"{before}<mask>", return_tensors="pt")
        ids = bart.generate(**inputs, decoder_input_ids=start, max_new_tokens=10, **plain)
        answer = processor.tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True)
        assert texts[number] == normalize(answer, steps["answer_from_caption"])


class Counted:
    """Images that went through a vision tower."""

    def __init__(self, model):
        self.images = 0
        self.hook = model.vision_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, kwargs):
        self.images += len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])


@pytest.fixture
def counted(model):
    counted = Counted(model)
    yield counted
    counted.hook.remove()


def test_an_image_is_encoded_once(model, processor, vqa_dir, tmp_path, counted):
    task = replace(task_of("vqav2"), strategies=("direct", "blind"))
    generate_all(model, processor, task, load_examples(task, DatasetOverrides(vqa_dir)), tmp_path, batch_size=1)
    assert counted.images == 4  # of 8 questions


def test_a_stopped_run_goes_on_where_it_was(model, processor, vqa_dir, tmp_path, counted):
    task = task_of("vqav2")
    examples = load_examples(task, DatasetOverrides(vqa_dir))
    expected = generate_all(model, processor, with_strategies(task, "direct"), examples, tmp_path)
    (log,) = tmp_path.glob("*.jsonl")
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    log.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed in the middle of a line
    counted.images = 0
    assert generate_all(model, processor, with_strategies(task, "direct"), examples, tmp_path) == expected
    assert counted.images == 2  # rows stand image by image: two were done, and half of the third
    assert sorted(log.read_bytes().splitlines()) == sorted(line.rstrip() for line in lines)
    counted.images = 0
    assert generate_all(model, processor, with_strategies(task, "direct"), examples, tmp_path) == expected
    assert counted.images == 0


def test_a_text_may_hold_any_character(tmp_path):
    record = {"id": 1, "question": None, "text": "a\u2028b\x85c\nd"}  # some take the first two for line breaks
    GenerationLog(tmp_path / "log").append([record])
    log = GenerationLog(tmp_path / "log")
    assert log.records == {1: record}


def test_a_log_of_something_else_is_named(tmp_path):
    for line in ("[1]", "{", "{}"):
        (tmp_path / "log").write_text(f"{line}\n")
        with pytest.raises(ValueError, match="log has a line that `vlkd evaluate` did not write"):
            GenerationLog(tmp_path / "log")


def test_a_limited_run_is_the_beginning_of_the_whole(model, processor, vqa_dir, tmp_path, counted):
    task = task_of("vqav2")
    some = generate_all(
        model,
        processor,
        with_strategies(task, "direct"),
        load_examples(task, DatasetOverrides(vqa_dir, limit=3)),
        tmp_path,
    )
    counted.images = 0
    every = generate_all(
        model, processor, with_strategies(task, "direct"), load_examples(task, DatasetOverrides(vqa_dir)), tmp_path
    )
    assert every["direct"][:3] == some["direct"] and counted.images == 4  # each has a question left


@pytest.mark.parametrize("change", ["prompt", "beams", "weights", "question"])
def test_what_was_changed_is_answered_again(model, processor, images, vqa_dir, tmp_path, change):
    task = task_of("vqav2")
    generate_all(
        model,
        processor,
        with_strategies(task, "direct"),
        load_examples(task, DatasetOverrides(vqa_dir)),
        tmp_path / "kept",
    )
    shutil.copytree(tmp_path / "kept", tmp_path / "used")
    step = task.steps["answer"]
    if change == "prompt":
        task = replace(task, steps={"answer": replace(step, prompt="a photo of {question} <mask>")})
    if change == "beams":
        task = replace(task, steps={"answer": replace(step, num_beams=3)})
    if change == "weights":
        model = copy.deepcopy(model)
        model.language_model.final_logits_bias.neg_()
    if change == "question":
        changed = data.vqav2(images).map(lambda row: {"question": row["question"].replace("circle", "square")})
        shutil.rmtree(vqa_dir)
        data.save({"validation": changed}, Path(vqa_dir))
    examples = load_examples(task, DatasetOverrides(vqa_dir))
    texts = generate_all(model, processor, with_strategies(task, "direct"), examples, tmp_path / "used")
    assert texts == generate_all(model, processor, with_strategies(task, "direct"), examples, tmp_path / "fresh")


def test_other_arguments_of_the_dataset_start_over(model, processor, tmp_path):
    """Another seed draws other scenes, whose images have the same ids."""
    tasks = {task.name: task for task in load_task("microworld")}
    texts = []
    for folder, seed in (("used", 0), ("used", 1), ("fresh", 1)):
        task = tasks["microworld-captions"]
        steps = {"caption": replace(task.steps["caption"], max_new_tokens=8)}
        task = replace(task, steps=steps, dataset_kwargs={"size": 6, "seed": seed})
        examples = load_examples(task, DatasetOverrides())
        assert examples.rows[0]["image_id"] == 0
        texts.append(generate_all(model, processor, task, examples, tmp_path / folder))
    assert texts[0] != texts[1] == texts[2]


def test_embeddings_are_the_dual_encoders(model, processor, images, tmp_path):
    task = task_of("flickr30k-retrieval")
    examples = load_examples(task, DatasetOverrides(data.save({"test": data.flickr30k(images)}, tmp_path / "hub")))
    image_embeds, text_embeds, image_of_text = embed_all(model, processor, examples, batch_size=3)
    assert image_of_text == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    with torch.no_grad():
        expected = model.get_image_features(processor(images=images)["pixel_values"]).pooler_output
        torch.testing.assert_close(image_embeds, expected)
        inputs = processor(text=data.captions_of(2)[1])
        torch.testing.assert_close(text_embeds[[11]], model.get_text_features(**inputs).pooler_output)


def test_embeddings_of_a_bfloat16_model_are_compared_in_float32(model, processor, images, tmp_path):
    examples = load_examples(
        task_of("flickr30k-retrieval"), DatasetOverrides(data.save({"test": data.flickr30k(images)}, tmp_path / "hub"))
    )
    exact, rounded = (embed_all(one, processor, examples) for one in (model, copy.deepcopy(model).bfloat16()))
    for due, found in zip(exact[:2], rounded[:2], strict=True):
        assert found.dtype == torch.float32 and (due * found).sum(-1).min() > 0.99


def test_retrieval_by_a_tasks_own_metric(model, processor, images, clip_dir, tmp_path, monkeypatch):
    """The function gets the embeddings of the images and of the captions, and then those of CLIP's text tower."""
    (tmp_path / "my_recall.py").write_text("def given(*embeds):\n    return [embeds]\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = replace(task_of("flickr30k-retrieval"), metric="my_recall:given")
    examples = load_examples(task, DatasetOverrides(data.save({"test": data.flickr30k(images)}, tmp_path / "hub")))
    ((name, [own]), (control, [by_clip])), remarks = retrieve(model, processor, task, examples, clip_dir, 3)
    assert (name, control, remarks) == ("direct", CLIP_TEXT, [])
    expected = embed_all(model, processor, examples)[:2] + (clip_text_embeds(clip_dir, model, examples),)
    for found, due in zip((own[0], own[1], by_clip[1]), expected, strict=True):
        torch.testing.assert_close(found, due)
    assert own[2] == by_clip[2] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_the_parts_of_the_microworld_are_scored():
    """Right answers and captions by what the rows carry; of ten captions, one is another scene's."""
    for task in load_task("microworld")[:4]:
        rows = load_examples(replace(task, dataset_kwargs={"size": 10}), DatasetOverrides()).rows
        right = [(row.get("answers") or row["captions"])[0] for row in rows]
        figures, _ = score_task(task, rows, right)
        assert {figure["value"] for figure in figures if "majority" not in figure["metric"]} == {1.0}
    assert len(rows) == 10  # of the captions
    (figure, *by_groups), _ = score_task(task, rows, [right[1], *right[1:]])
    assert figure["value"] == 0.9 and sum(part["n"] for part in by_groups) == 10
