"""`vlkd train` on folders, streams and mixtures with flaws in them."""

import json
from pathlib import Path

import pytest
import yaml
from source_data import CAPTIONS, jpegs, write_images, write_parquet, write_tars

from modeling_vlkd import VLKDForConditionalGeneration
from trainer.cli import main
from trainer.data.skipped import FILE
from trainer.models import load_teacher

CAPTIONS = [caption.encode() for caption in CAPTIONS]


@pytest.fixture
def train(write_config, monkeypatch):
    """Runs `vlkd train` with a YAML file of the options given."""
    monkeypatch.chdir(Path(__file__).parents[2] / "support")
    return lambda **options: main(["train", "--config", write_config(**{"max_steps": 3, **options})])


def skipped(folder: Path) -> set[tuple]:
    return {
        (line["split"], line["row"], line["reason"])
        for line in map(json.loads, (folder / "out" / FILE).read_text().splitlines())
    }


def complaint(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlkd: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_folder_with_flaws(train, tmp_path, caplog):
    folder = write_images(tmp_path / "images" / "train").parent
    (folder / "train" / "3.jpg").write_bytes(jpegs()[3][:200])
    (folder / "train" / "5.jpg").unlink()
    options = {"dataset_name": str(folder), "dataloader_num_workers": 1, "max_skipped_fraction": 0.2, "max_steps": 6}
    assert train(**options) == 0
    assert skipped(tmp_path) == {("train", 3, "broken image"), ("train", 5, "missing file")}
    line = "(1 broken image, 1 missing file)"
    assert [line in record.getMessage() for record in caplog.records].count(True) == 1
    VLKDForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert yaml.safe_load((tmp_path / "out" / "train.yaml").read_text())["dataset_name"] == str(folder)


def test_a_stream_with_flaws_and_its_evaluation(train, tmp_path, monkeypatch):
    loaded = []
    for module in ("trainer.build", "trainer.vlkd_trainer"):
        monkeypatch.setattr(
            f"{module}.load_teacher", lambda name, model: loaded.append(name) or load_teacher(name, model)
        )
    folder = write_tars(tmp_path / "tars", captions=[*CAPTIONS[:6], b"caf\xe9", b"  ", *CAPTIONS[8:]])
    write_tars(folder, shards=1, split="validation", captions=[b"caf\xe9", *CAPTIONS[1:]])
    options = {"dataset_name": str(folder), "image_column": "jpg", "caption_column": "txt", "streaming": True}
    options |= {
        "dataset_test_split": "validation",
        "max_skipped_fraction": 0.5,
        "shuffle_buffer_size": 4,
        "dataloader_num_workers": 1,
    }
    assert train(**options, max_steps=6) == 0
    assert {reason for _, _, reason in skipped(tmp_path)} == {"not UTF-8", "no caption"}
    assert {split for split, _, _ in skipped(tmp_path)} == {"train", "validation"} and len(skipped(tmp_path)) == 3
    metrics = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert metrics["eval_icti"] > 0 and metrics["train_loss"] > 0
    assert len(loaded) == 1


def test_a_mixture_with_flaws_and_the_cache(train, tmp_path):
    images = write_images(tmp_path / "images")
    (images / "9.jpg").write_bytes(b"")
    parquet = write_parquet(tmp_path / "parquet")
    options = {
        "dataset_name": [str(parquet), str(images)],
        "dataset_probabilities": [0.7, 0.3],
        "max_skipped_fraction": 0.05,
    }
    assert train(**options, cache_image_features="all") == 0
    assert skipped(tmp_path) == {("train", 19, "empty file")}
    assert train(**options, cache_image_features="all") == 0  # from the cache, with the same list
    assert skipped(tmp_path) == {("train", 19, "empty file")}
    (images / "9.jpg").write_bytes(jpegs()[9])  # repaired
    assert train(**options, cache_image_features="all") == 0
    assert not (tmp_path / "out" / FILE).exists()
    recipe = yaml.safe_load((tmp_path / "out" / "train.yaml").read_text())
    assert recipe["dataset_name"] == [str(parquet), str(images)] and recipe["dataset_probabilities"] == [0.7, 0.3]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_flaws_stop_the_run(train, tmp_path, capsys, workers):
    images = write_images(tmp_path / "images")
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(b"")
    assert train(dataset_name=str(images), dataloader_num_workers=workers, max_skipped_fraction=0.1, max_steps=10) == 2
    assert "of 10 rows of split 'train' are invalid, more than max_skipped_fraction: 0.1" in complaint(capsys)


def test_on_error_raise(train, tmp_path, capsys):
    images = write_images(tmp_path / "images")
    (images / "4.jpg").write_bytes(b"")
    assert train(dataset_name=str(images), on_error="raise", max_steps=10) == 2
    assert "4.jpg: the image in column 'image' cannot be read: it is empty, 0 bytes" in (said := complaint(capsys))
    assert "Or set on_error: skip" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "streaming requires max_steps"),
        ({"save_strategy": "epoch"}, "save_strategy is epoch"),
        ({"cache_image_features": "all"}, "cache_image_features is all"),
        ({"caption_column": "text"}, "has no column 'text'; it has image, caption"),
        ({"dataset_name": ["caption_data:load"] * 2, "dataset_probabilities": [1]}, "dataset_probabilities is [1.0]"),
    ],
)
def test_mistakes_with_streams_are_one_line(train, capsys, options, message):
    assert train(**{"dataset_name": "source_data:as_split", "streaming": True, **options}) == 2
    assert message in complaint(capsys)
