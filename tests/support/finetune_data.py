"""For the tests of docs/transformers.md: its blocks, and the folders `my_vlkd` and `my_images` that they name."""

import json
import random
import runpy
import shlex
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import BatchFeature

from microworld.world.language import caption, question
from microworld.world.rendering import render
from microworld.world.scenes import scenes
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT / "microworld" / "teachers"
EXAMPLES = ROOT / "examples"


def blocks(heading: str, language: str, page: str = "transformers.md") -> list[str]:
    """The code of one section of a page."""
    section = (ROOT / "docs" / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    parts = section.split("\n## ")[0].split("```")[1::2]
    return [part.removeprefix(f"{language}\n") for part in parts if part.startswith(f"{language}\n")]


def run_command(heading: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Runs the section's command as it stands, with `more` options behind it, in this process."""
    (command,) = blocks(heading, "bash")
    run_script(command, monkeypatch, *more)


def run_script(command: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Runs `python examples/….py …` in this process."""
    python, script, *options = shlex.split(command)
    assert python == "python"
    monkeypatch.setattr("sys.argv", [script, *options, *more])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def micro_model() -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """The two shipped micro teachers joined, untrained."""
    teachers = str(TEACHERS / "clip"), str(TEACHERS / "bart")
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers)
    return model, VLKDProcessor.from_vision_text_pretrained(*teachers)


def write_model(folder: Path) -> None:
    for part in micro_model():
        part.save_pretrained(folder)


def write_images(folder: Path, kind: str = "caption", number: int = 10) -> list[dict[str, str]]:
    """Images of the microworld with metadata.jsonl; returns its lines."""
    rng = random.Random(0)
    folder.mkdir()
    lines = []
    for index, scene in enumerate(islice(scenes("train"), number)):
        line = {"file_name": f"{index}.png"}
        render(scene, rng).save(folder / line["file_name"])
        if kind == "caption":
            line |= {"caption": caption(scene, rng)}
        else:
            asked = question(scene, ("count", "background")[index % 2], rng)
            line |= {"question": asked.text, "answer": asked.answer}
        lines.append(line)
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return lines


def micro_batch(processor: VLKDProcessor, rows: int = 8) -> BatchFeature:
    """Images with questions, and captions as what the decoder reads."""
    rng = random.Random(1)
    drawn = list(islice(scenes("validation"), rows))
    prompts = [processor.build_vqa_prompt("what is in the picture?")] * rows
    batch = processor(images=[render(scene, rng) for scene in drawn], text=prompts)
    targets = processor.tokenizer([caption(scene, rng) for scene in drawn], padding=True, return_tensors="pt")
    start = torch.full((rows, 1), processor.tokenizer.eos_token_id)
    batch["decoder_input_ids"] = torch.cat([start, targets["input_ids"][:, :-1]], dim=1)
    return batch
