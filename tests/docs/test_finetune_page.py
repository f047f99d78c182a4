"""docs/finetune.md from top to bottom: every file and command that it shows, on a small folder, against a Hub."""

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from finetune_data import ROOT, TEACHERS, run_script, write_images, write_model
from huggingface_hub import constants
from loopback_hub import Hub, running_hub
from safetensors.torch import load_file

from modeling_vlkd import VLKDForConditionalGeneration
from trainer.cli import main
from trainer.hub.repository import HUB

PAGE = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
BLOCKS = [block.partition("\n")[::2] for block in PAGE.split("```")[1::2]]  # (language, text)
CLIP = "openai/clip-vit-base-patch16"
SMALL = {"clip": str(TEACHERS / "clip"), "lora_r": 4, "per_device_train_batch_size": 8, "num_train_epochs": 4}
SMALL |= {"use_cpu": True, "bf16": False, "max_skipped_fraction": 0.1}
SMALL |= {"learning_rate": 3e-3, "logging_steps": 1, "disable_tqdm": True}


def texts(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def write_folder(folder: Path, kind: str, header: str) -> None:
    """Both splits, with the columns that the page's example of a metadata.csv has."""
    folder.mkdir()
    for split, number in (("train", 18), ("validation", 6)):
        lines = write_images(folder / split, kind, number)
        (folder / split / "metadata.jsonl").unlink()
        with open(folder / split / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, header.split(","))
            writer.writeheader()
            writer.writerows(lines)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """The reader's folder, with what the page says is in it, one photo spoilt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)  # another test imports its own
    # Without Java: METEOR and SPICE take most of a minute, and test_caption_scores.py has them.
    monkeypatch.setattr(shutil, "which", lambda name, which=shutil.which: None if name == "java" else which(name))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "my_vlkd")
    captions, questions = (text.splitlines()[0] for text in texts("") if text.startswith("file_name,"))
    write_folder(tmp_path / "my_photos", "caption", captions)
    write_folder(tmp_path / "my_questions", "question", questions)
    photo = tmp_path / "my_photos" / "train" / "17.png"
    photo.write_bytes(photo.read_bytes()[:300])
    recipe, task = texts("yaml")
    assert CLIP in recipe and "my_recipe.yaml" in PAGE and "my_questions.yaml" in PAGE
    (tmp_path / "my_recipe.yaml").write_text(yaml.safe_dump({**yaml.safe_load(recipe), **SMALL}))
    (tmp_path / "my_questions.yaml").write_text(task)
    (tmp_path / "my_metric.py").write_text(texts("python")[1])
    yield tmp_path
    torch.set_flush_denormal(False)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """A loopback Hub, to which the commands of this process push."""
    with running_hub() as hub:
        for name, value in hub.environment("unused").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(HUB, "endpoint", hub.url)
        yield hub


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command of the page."""
    program, *options = shlex.split(command)
    if program == "python" and options[0] == "-c":
        exec(options[1], {})
    elif program == "python":
        run_script(command, monkeypatch, "--batch-size", "6", "--epochs", "2")
    else:
        assert program == "vlkd" and main(options) == 0, command


def test_page(workplace, hub, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)  # other tests have one of this name
    merge, _ = texts("python")
    weights = {}
    for language, text in BLOCKS:
        if language == "python" and text == merge:
            exec(text, {})
        for command in text.splitlines() if language == "bash" else ():
            run(command, monkeypatch)
            if command.startswith("vlkd train"):
                weights[command] = load_file("my_model/model.safetensors")
    caption_repo, vqa_repo = hub.files("user/my-model"), hub.files("user/my-vqa")

    # Training: BART's adapted projections and the two maps moved, nothing else; resumed, to the same weights.
    trained, resumed = weights.values()
    assert trained.keys() == resumed.keys() and all(torch.equal(trained[name], resumed[name]) for name in trained)
    before = load_file("my_vlkd/model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], trained[name])}
    assert moved and all(
        re.search(r"language_model.*[qv]_proj.weight|(text|image)_projection", name) for name in moved
    )
    assert not Path("my_model/adapter_config.json").exists()
    state = json.loads(Path("my_model/trainer_state.json").read_text())
    costs = [log["eval_icti"] for log in state["log_history"] if "eval_icti" in log]
    assert state["best_metric"] == min(costs[: SMALL["num_train_epochs"]]) < costs[0]
    (line,) = map(json.loads, Path("my_model/skipped.jsonl").read_text().splitlines())
    (shown,) = map(json.loads, texts("json"))
    assert line.keys() == shown.keys() and line["reason"] == shown["reason"] and line["name"].endswith("train/17.png")

    # Six photos, and a column for each epoch; the images come out of a cache of features.
    page = Path("my_model/samples.html").read_text()
    assert page.count("<img ") == 6 and page.count("<th>step ") == SMALL["num_train_epochs"]

    # The figures of both models, and those of the pushed cards.
    after = json.loads(Path("after/metrics.json").read_text())["figures"]
    assert {"direct", "blind"} == {figure["condition"] for figure in after} and after[0]["n"] == 6
    card = caption_repo["README.md"].decode()
    assert "CIDEr" in card and "| lora_r | `4` |" in card and "| model_name_or_path | `my_vlkd` |" in card
    assert {"model.safetensors", "train.yaml", "modeling_vlkd.py", "metrics.json"} <= caption_repo.keys()
    assert not any(
        name.endswith((".bin", ".jsonl", ".csv", ".png", ".html")) or "adapter" in name for name in caption_repo
    )
    assert {"model.safetensors", "modeling_vlkd.py", "processor_config.json"} <= vqa_repo.keys()
    said = capsys.readouterr().out
    assert "exact match" in said and "my_photos/validation/0.png\t" in said and "GFLOP per sample" in said
    VLKDForConditionalGeneration.from_pretrained("my_merged")
