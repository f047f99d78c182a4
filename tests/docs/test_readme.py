"""The README's training example runs as it stands, but for the two checkpoints and the number of epochs."""

import json
import random
from itertools import islice
from pathlib import Path

from microworld.world.language import caption
from microworld.world.rendering import render
from microworld.world.scenes import scenes
from modeling_vlkd import VLKDForConditionalGeneration

ROOT = Path(__file__).parents[2]


def python_block(heading: str) -> str:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"## {heading}")[1]
    return section.split("```python\n")[1].split("```")[0]


def test_own_images_and_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    Path("my_images").mkdir()
    with open("my_images/metadata.jsonl", "w", encoding="utf-8") as lines:
        for number, scene in enumerate(islice(scenes("train"), 8)):
            render(scene, rng).save(f"my_images/{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "caption": caption(scene, rng)}) + "\n")
    teachers = ROOT / "microworld" / "teachers"
    code = python_block("Train on your own images and captions")
    for name, folder in (("openai/clip-vit-base-patch16", "clip"), ("facebook/bart-base", "bart")):
        assert name in code
        code = code.replace(name, str(teachers / folder))
    assert "num_train_epochs=5" in code
    exec(code.replace("num_train_epochs=5", "max_steps=1, use_cpu=True"), {})
    VLKDForConditionalGeneration.from_pretrained("my_vlkd")
