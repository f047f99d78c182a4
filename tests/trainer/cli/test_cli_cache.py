"""`vlkd cache`: what it leaves is what `vlkd train` reads, whatever stops it."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
from rehearsal.__main__ import check_cache
from source_data import write_images

from modeling_vlkd import VLKDForConditionalGeneration
from trainer.cli import main

SUPPORT = Path(__file__).parents[2] / "support"
KILLED = """
import os, signal, sys
from trainer.cache import clip_features, columns
from trainer.cli import main

columns.SHARD_ROWS, columns.BATCH_SIZE = 4, 2
to_float16 = clip_features.to_float16

def until_killed(values, rows):
    if values.dim() == 3 and rows.start == 6:  # the images of the second shard's second batch
        os.kill(os.getpid(), signal.SIGKILL)
    return to_float16(values, rows)

clip_features.to_float16 = until_killed
main(["cache", "--config", sys.argv[1]])
"""


@pytest.fixture
def config(write_config, monkeypatch):
    """Writes a run's YAML file; the working directory holds the module that its dataset names."""
    monkeypatch.chdir(SUPPORT)
    options = {"dataset_name": "caption_data:load", "dataset_kwargs": {"rows": 12}, "cache_image_features": "all"}
    return partial(write_config, **options)


def snapshot(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}


def complaint(capsys, path: str) -> str:
    assert main(["cache", "--config", path]) == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("vlkd: error: "))


@pytest.mark.parametrize(
    ("image_tokens", "image_features", "kinds"),
    [
        ("patch", "all", {"invalid_rows", "image_features", "teacher_embeds"}),
        ("pooled", "pooled", {"invalid_rows", "image_features", "teacher_embeds"}),
        ("all", "none", {"invalid_rows", "teacher_embeds"}),
    ],
)
def test_training_computes_nothing(config, tmp_path, monkeypatch, capsys, image_tokens, image_features, kinds):
    path = config(image_tokens=image_tokens, cache_image_features=image_features, dataset_test_split="validation")
    assert main(["cache", "--config", path]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines() == [
        f"{split}: 12 rows are cached in {tmp_path / 'cache'}" for split in ("train", "validation")
    ]
    check_cache(tmp_path, printed)
    cache = tmp_path / "cache"
    assert {folder.name.split("-")[0] for folder in cache.iterdir()} == kinds
    assert len(list(cache.iterdir())) == 2 * len(kinds)  # for each split
    before = snapshot(cache)
    monkeypatch.setattr("trainer.cache.clip_features.teacher_embeds", None)  # each would fail if it were called
    if image_features != "none":
        monkeypatch.setattr(VLKDForConditionalGeneration, "get_image_features", None)
    assert main(["train", "--config", path]) == 0
    assert snapshot(cache) == before


def test_flawed_rows_are_left_out_alike(config, tmp_path, capsys, monkeypatch):
    folder = write_images(tmp_path / "photos")
    (folder / "3.jpg").write_bytes(b"no image")
    options = {
        "dataset_name": str(folder),
        "dataset_kwargs": None,
        "max_skipped_fraction": 0.2,
        "dataloader_num_workers": 1,
    }
    path = config(**options)
    assert main(["cache", "--config", path]) == 0
    assert "train: 9 rows are cached" in capsys.readouterr().out
    assert (tmp_path / "out" / "skipped.jsonl").read_text().count("\n") == 1
    before = snapshot(tmp_path / "cache")
    monkeypatch.setattr(VLKDForConditionalGeneration, "get_image_features", None)
    assert main(["train", "--config", path]) == 0
    assert snapshot(tmp_path / "cache") == before
    assert (tmp_path / "out" / "skipped.jsonl").read_text().count("\n") == 1


@pytest.mark.slow
def test_killed_it_goes_on(config, tmp_path, monkeypatch):
    path = config()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT.parents[1]), *sys.path])}
    killed = subprocess.run([sys.executable, "-c", KILLED, path], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (folder,) = (tmp_path / "cache").glob("image_features-*")
    assert [file.name for file in folder.glob("*.arrow")] == ["0000000000-0000000004.arrow"]
    assert list(folder.glob("*.tmp"))  # half of the second shard
    before = snapshot(tmp_path / "cache")
    monkeypatch.setattr("trainer.cache.columns.SHARD_ROWS", 4)
    monkeypatch.setattr("trainer.cache.columns.BATCH_SIZE", 2)
    assert main(["cache", "--config", path]) == 0
    after = snapshot(tmp_path / "cache")
    assert before.items() <= after.items() and len(list(folder.glob("*.arrow"))) == 3
    assert not list(folder.glob("*.tmp"))
    assert main(["train", "--config", path]) == 0


def test_disk_too_small(config, capsys, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 10_000, 10_000))
    error = complaint(capsys, config())
    # 12 images of 17 tokens, and 24 captions, of 24 numbers of two bytes
    assert "needs 10.9kB" in error and "has 10.0kB free" in error
    assert "cache_image_features to pooled or none" in error
    assert not snapshot(tmp_path / "cache")  # nothing was looked at yet


def test_a_stream_is_not_cached(config, capsys):
    assert "set streaming to false" in complaint(capsys, config(streaming=True, cache_image_features="none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_image_features": "pooled"}, "cache_image_features is pooled, but the decoder sees image_tokens=all"),
        ({"cache_image_features": "some"}, "invalid choice: 'some'"),
        ({"dataset_name": "./nowhere"}, "dataset './nowhere' does not exist"),
    ],
)
def test_mistakes_are_one_line(config, capsys, changes, message):
    assert message in complaint(capsys, config(**changes))
