"""The commands and the code of docs/search.md run as they are written, and agree."""

import random
import shlex
from itertools import islice
from pathlib import Path

import pytest
from finetune_data import blocks, write_model

from microworld.world.rendering import render
from microworld.world.scenes import scenes
from trainer.cli import main


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_model(Path("demo_output/model"))
    Path("demo_output/pictures").mkdir()
    for number, scene in enumerate(islice(scenes("test"), 6)):
        render(scene, random.Random(number)).save(f"demo_output/pictures/scenes-{number}.jpg")
    commands = [block for name in ("Text to image", "Image to image", "A page of results") for block in lines_of(name)]
    outputs = []
    for command in commands:
        assert main(shlex.split(command)[1:] + ["--device", "cpu", "--dtype", "float32"]) == 0
        outputs.append([line.split("\t") for line in capsys.readouterr().out.splitlines()])
    _, texts, images, _ = outputs
    assert (
        images[0] == ["1.0000", str(tmp_path / "demo_output/pictures/scenes-0.jpg")] and Path("results.html").is_file()
    )

    of_the_index, of_a_dataset = blocks("In Python", "python", "search.md")
    found, embedded = {}, {}
    exec(of_the_index, found)
    exec(of_a_dataset, embedded)
    assert list(found["found"]["path"]) == [path for _, path in texts]
    pictures = sorted(str(path) for path in tmp_path.glob("demo_output/pictures/*"))
    assert [pictures[row] for row in embedded["rows"]] == [path for _, path in texts]
    for scores in (found["scores"], embedded["scores"]):
        assert scores.tolist() == pytest.approx([float(score) for score, _ in texts], abs=1e-4)


def lines_of(heading: str) -> list[str]:
    (block,) = blocks(heading, "bash", "search.md")
    return block.splitlines()
