"""`vlkd caption --dataset`: each kind of dataset, several processes, stops, and the upload."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
from loopback_hub import running_hub
from PIL import Image
from source_data import as_dataset, write_images, write_parquet, write_tars

from trainer.cli import caption_dataset, main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def caption(vlkd_dir, tmp_path, monkeypatch, capsys):
    """Runs `vlkd caption --dataset` as one of several processes; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(dataset: str, *argv: str, output: str = "out", rank: int = 0, world_size: int = 1) -> tuple[int, str, str]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        options = ["--model", vlkd_dir, "--dtype", "float32", "--device", "cpu"]
        code = main(["caption", "--dataset", dataset, "--output", output, *options, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def read(folder: str = "out") -> list[dict]:
    rows = datasets.load_dataset(
        "parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=f"{folder}/cache"
    )
    return sorted(rows, key=lambda row: (row["shard"], row["row"]))


def contents(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir() if file.is_file()}


def expected(model, processor, rows: list[Image.Image]) -> list[str]:
    captions = []
    for image in rows:
        batch = processor(images=image)
        ids = model.generate(**batch, max_new_tokens=40, num_beams=1, do_sample=False)
        captions += processor.post_process_generation(ids, batch["input_ids"])
    return captions


def test_parquet(caption, model, processor, tmp_path):
    write_parquet(tmp_path / "data", files=2)
    assert caption("data")[0] == 0
    assert len(pd.read_parquet("out")) == 10
    rows = read()
    assert [(row["shard"], row["row"]) for row in rows] == [(shard, row) for shard in range(2) for row in range(5)]
    images = [image for shard in range(2) for image in as_dataset().shard(2, shard)["image"]]
    assert [row["caption"] for row in rows] == expected(model, processor, images)
    assert sorted(contents("out")) == [
        "_captions.json",
        "captions-00000-of-00002.parquet",
        "captions-00001-of-00002.parquet",
    ]


def test_tar_files_have_keys(caption, tmp_path):
    write_tars(tmp_path / "tars", shards=3)
    assert caption("tars", "--image_column", "jpg")[0] == 0
    rows = read()
    assert [row["__key__"].rpartition("/")[-1] for row in rows] == [f"{number:09d}" for number in range(10)]
    assert [row["shard"] for row in rows] == [0] * 3 + [1] * 3 + [2] * 4


def test_columns_are_copied(caption, tmp_path):
    write_tars(tmp_path / "tars", shards=1)
    assert caption("tars", "--image_column", "jpg", "--key_columns", "txt", "__url__")[0] == 0
    assert read()[0]["txt"] == datasets.load_dataset("webdataset", data_dir="tars", split="train")[0]["txt"]


def test_an_image_folder_has_few_shards(caption, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_dataset, "SHARDS", 2)
    write_images(tmp_path / "photos")
    assert caption("photos")[0] == 0
    assert len(read()) == 10 and len(contents("out")) == 3


def test_two_processes_write_what_one_writes(caption, tmp_path):
    write_parquet(tmp_path / "data", files=5)
    caption("data", output="one")
    for rank in (1, 0):
        caption("data", output="two", rank=rank, world_size=2)
    assert contents("one") == contents("two") and len(contents("one")) == 6


def test_a_stopped_run_is_continued(caption, tmp_path, monkeypatch):
    write_parquet(tmp_path / "data", files=3)
    caption("data", output="whole")
    original, done = caption_dataset.caption_shard, []

    def stop_after_one(*args):
        if done:
            raise KeyboardInterrupt
        return done.append(original(*args)) or 0

    monkeypatch.setattr(caption_dataset, "caption_shard", stop_after_one)
    assert caption("data")[0] == 130 and len(contents("out")) == 2
    done.clear()
    monkeypatch.setattr(caption_dataset, "caption_shard", lambda *args: done.append(args[2]) or original(*args))
    assert caption("data")[0] == 0
    assert done == [1, 2] and contents("out") == contents("whole")


def test_unreadable_images_keep_their_rows(caption, tmp_path):
    write_parquet(tmp_path / "data", files=1)
    rows = as_dataset().cast_column("image", datasets.Image(decode=False))
    broken = rows.map(lambda row, number: {"image": {"bytes": b"no image"}} if number == 3 else row, with_indices=True)
    broken.to_parquet(tmp_path / "data" / "train-00000.parquet")
    code, _, errors = caption("data")
    assert code == 1 and "captions-00000-of-00001.parquet, row 3: image (bytes) cannot be read" in errors
    found = read()
    assert [row["row"] for row in found if row["caption"] is None] == [3]
    assert [row["row"] for row in found if row["error"]] == [3]


def test_mistakes_change_nothing(caption, tmp_path):
    write_parquet(tmp_path / "data", files=1)
    assert caption("data", "--max_new_tokens", "5")[0] == 0
    before = contents("out")
    for options, message in [
        ([], "has captions with other options (max_new_tokens)"),
        (["--dataset_kwargs", "{"], "is not a JSON object"),
        (["--dataset_kwargs", "[]"], "is not a JSON object"),
        (["--key_columns", "image"], "the captions have a column of this name"),
        (["--split", "test"], "split 'test'"),
        (["--image_column", "picture"], "has no column 'picture'"),
        (["--key_columns", "url"], "has no column 'url'"),
        (["--key_columns", "caption"], "the captions have a column of this name"),
    ]:
        code, _, errors = caption("data", *options)
        assert code == 2 and message in errors
    assert contents("out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"")
    assert "is not empty" in caption("data", output="mine")[2]
    assert "needs --output FOLDER" in caption("data", "photo.jpg")[2]
    assert "'./nowhere' does not exist" in caption("./nowhere")[2]


def test_overwrite(caption, tmp_path):
    write_parquet(tmp_path / "data", files=1)
    caption("data", "--max_new_tokens", "1")
    assert caption("data", "--overwrite")[0] == 0
    assert json.loads(Path("out/_captions.json").read_text())["max_new_tokens"] == 40
    assert max(len(row["caption"].split()) for row in read()) > 1


def test_overwriting_is_continued_too(caption, tmp_path, monkeypatch):
    write_parquet(tmp_path / "data", files=3)
    caption("data", "--max_new_tokens", "1")
    original, done = caption_dataset.caption_shard, []

    def stop_after_one(*args):
        if done:
            raise KeyboardInterrupt
        return done.append(original(*args)) or 0

    with monkeypatch.context() as patch:
        patch.setattr(caption_dataset, "caption_shard", stop_after_one)
        assert caption("data", "--overwrite")[0] == 130
    assert caption("data")[0] == 0
    caption("data", output="whole")
    assert contents("out") == contents("whole")


def test_overwriting_leaves_no_shards_of_another_number(caption, tmp_path):
    write_parquet(tmp_path / "data", files=3)
    caption("data")
    write_parquet(tmp_path / "other", files=1)
    assert caption("other", "--overwrite")[0] == 0
    assert sorted(contents("out")) == ["_captions.json", "captions-00000-of-00001.parquet"] and len(read()) == 10


def test_a_broken_shard_does_not_stop_the_others(caption, tmp_path):
    write_parquet(tmp_path / "data", files=3)
    whole = (tmp_path / "data" / "train-00001.parquet").read_bytes()
    (tmp_path / "data" / "train-00001.parquet").write_bytes(b"PAR1 and then nothing")
    code, _, errors = caption("data")
    assert code == 1 and "captions-00001-of-00003.parquet: shard 2 of 3 cannot be read" in errors
    assert sorted(contents("out")) == ["_captions.json", *(f"captions-0000{n}-of-00003.parquet" for n in (0, 2))]
    (tmp_path / "data" / "train-00001.parquet").write_bytes(whole)
    assert caption("data")[0] == 0 and len(contents("out")) == 4


def test_a_dataset_without_rows(caption, tmp_path):
    as_dataset().select([]).save_to_disk(tmp_path / "empty")
    code, _, errors = caption("empty")
    assert code == 2 and "dataset 'empty' has no rows" in errors and not Path("out").exists()


def test_what_another_process_is_writing_is_no_foreign_file(caption, tmp_path):
    write_parquet(tmp_path / "data", files=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_captions.json.1.part").write_text("{")
    assert caption("data")[0] == 0


@pytest.mark.slow
def test_two_processes_stream_from_the_hub_and_push(vlkd_dir, tmp_path):
    write_parquet(tmp_path / "data", files=3)
    with running_hub() as hub:
        hub.add_folder("datasets/user/photos", tmp_path / "data")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
        command += ["-m", "trainer.cli", "caption", "--dataset", "user/photos", "--output", str(tmp_path / "out")]
        command += ["--model", vlkd_dir, "--dtype", "float32", "--device", "cpu", "--push_to_hub", "user/captions"]
        environment = os.environ | hub.environment(str(tmp_path / "home")) | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        assert hub.files("datasets/user/captions") == contents(str(tmp_path / "out"))
        assert len(contents(str(tmp_path / "out"))) == 4
    assert [row["caption"] is None for row in read(str(tmp_path / "out"))] == [False] * 10
