"""README's examples run."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
from finetune_data import TEACHERS, write_model

from microworld.world.language import caption
from microworld.world.rendering import render
from microworld.world.scenes import scenes
from modeling_vlkd import VLKDForConditionalGeneration

ROOT = Path(__file__).parents[2]


def python_block(heading: str, page: str = "README.md") -> str:
    section = (ROOT / page).read_text(encoding="utf-8").split(f"## {heading}")[1]
    return section.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "Quick start"),
        ("docs/usage.md", "Pipelines"),
        pytest.param("docs/usage.md", "Faster on a CPU", marks=pytest.mark.slow),
    ],
)
def test_pipelines(page, heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "demo_output" / "model")
    render(next(iter(scenes("test"))), random.Random(0)).save("photo.png")
    exec(python_block(heading, page), {})


def test_own_images_and_captions(tmp_path, monkeypatch):
    """The training example runs with two small checkpoints in place of its own, and logs the loss of each epoch."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    Path("my_images").mkdir()
    with open("my_images/metadata.jsonl", "w", encoding="utf-8") as lines:
        for number, scene in enumerate(islice(scenes("train"), 8)):
            render(scene, rng).save(f"my_images/{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "caption": caption(scene, rng)}) + "\n")
    code = python_block("Train on your own images and captions")
    for name, folder in (("openai/clip-vit-base-patch16", "clip"), ("facebook/bart-base", "bart")):
        assert name in code
        code = code.replace(name, str(TEACHERS / folder))
    names = {}
    exec(code.replace("num_train_epochs=5", "num_train_epochs=2, use_cpu=True"), names)
    logs = names["trainer"].state.log_history
    assert [log["epoch"] for log in logs if "icti" in log] == [1, 2]
    VLKDForConditionalGeneration.from_pretrained("my_vlkd")
