"""Each way to name data, as docs/data.md shows it, gives the same rows, by number and as a stream."""

import io
import json
import re
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from caption_data import load
from source_data import CAPTIONS, as_dataset, jpegs, write_coco, write_images, write_parquet, write_tars

from trainer.arguments import DataArguments
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.rows import load_image
from trainer.data.skipped import FILE, RowDecoder, SkipLog, count_skipped
from trainer.data.sources import load_coco, load_sources, mix_sources, to_disk
from trainer.data.streaming import StreamingDataset

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)]
LOCAL = [block for block in BLOCKS if block["dataset_name"] != "pixparse/cc3m-wds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What the page's names stand for."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "my_images")
    write_parquet(folder / "my_parquet")
    write_tars(folder / "my_tars")
    write_coco(folder / "my_coco")
    (folder / "my_table").mkdir()
    table = {"file": [f"{number}.jpg" for number in range(10)], "caption": CAPTIONS}
    datasets.Dataset.from_dict(table).to_parquet(folder / "my_table" / "train.parquet")
    (folder / "my_module.py").write_text(
        "from source_data import as_dataset\n\ndef load(split, rows):\n    return as_dataset().select(range(rows))\n"
    )
    return folder


def data_args(**options) -> DataArguments:
    known = DataArguments.__dataclass_fields__
    return DataArguments(**{name: value for name, value in options.items() if name in known})


def reader(args: DataArguments, folder: Path, rows: int | None = None) -> RowDecoder:
    return RowDecoder(args.image_column[0], args.caption_column[0], SkipLog(folder, "train", rows))


def pictures(rows: list[dict]) -> Counter:
    """The rows' captions and, rounded, their images' mean colors."""
    return Counter((row["caption"][0], tuple(np.asarray(row["image"]).mean((0, 1)).round(1))) for row in rows)


EXPECTED = [(text, load_image(data, "", "")) for text, data in zip(CAPTIONS, jpegs(), strict=True)]
EXPECTED = Counter((text, tuple(np.asarray(image).mean((0, 1)).round(1))) for text, image in EXPECTED)


# ---- the page


@pytest.mark.parametrize("block", LOCAL, ids=lambda block: f"{block['dataset_name']}-{len(block)}")
def test_every_block_of_the_page(block, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    args = data_args(**block)
    by_number = load_sources(args, "train", streaming=False)
    rows = EpochDataset(
        mix_sources(by_number, args.caption_column[0], args.dataset_probabilities), decode=reader(args, tmp_path)
    )
    found = pictures([rows[index] for index in range(len(rows))])
    expected = Counter(dict(EXPECTED.most_common())) if "rows" not in args.dataset_kwargs else found & EXPECTED
    if args.dataset_probabilities is None:
        assert found == Counter({row: count * len(args.dataset_name) for row, count in expected.items()})
    assert found.keys() == expected.keys()

    stream = StreamingDataset(
        load_sources(args, "train", streaming=True), reader(args, tmp_path), args.dataset_probabilities
    )
    count = len(rows) if args.dataset_probabilities is None else 200
    streamed = list(islice(stream, count))
    assert pictures(streamed).keys() == found.keys()
    if args.dataset_probabilities is None:
        assert pictures(streamed) == found and {row["epoch"] for row in streamed} == {0}


def test_the_page_names_every_key():
    text = DOCS.read_text()
    assert all(
        f"{key}:" in text or f"`{key}" in text
        for key in (
            "dataset_probabilities",
            "image_dir",
            "shuffle_buffer_size",
            "on_error",
            "max_skipped_fraction",
            "streaming",
        )
    )


# ---- kinds of source


def test_metadata_csv(tmp_path):
    args = data_args(dataset_name=str(write_images(tmp_path / "csv", "csv")))
    (source,) = load_sources(args, "train", streaming=False)
    assert source["caption"][:] == CAPTIONS


def test_columns_are_renamed_and_others_left_out(folder):
    args = data_args(dataset_name=[str(folder / "my_images"), str(folder / "my_tars")])
    args.image_column, args.caption_column = ["image", "jpg"], ["caption", "txt"]
    for streaming in (False, True):
        assert [source.column_names for source in load_sources(args, "train", streaming)] == [["image", "caption"]] * 2


def test_images_are_not_decoded_before_they_are_read(folder):
    """Decoding is left to whoever takes the row: a worker."""
    for name, columns in {"my_images": ("image", "caption"), "my_tars": ("jpg", "txt")}.items():
        args = data_args(dataset_name=str(folder / name), image_column=columns[0], caption_column=columns[1])
        (source,) = load_sources(args, "train", streaming=False)
        assert set(source[0][columns[0]]) == {"bytes", "path"}


def test_coco_rows_hold_all_captions_of_an_image(folder):
    dataset = load_coco(str(folder / "my_coco" / "captions_train.json"), str(folder / "my_coco" / "train"))
    assert len(dataset) == 10 and dataset[3]["image"]["path"] == str(folder / "my_coco" / "train" / "3.jpg")
    assert dataset[3]["caption"] == [CAPTIONS[3]] * 2


def test_a_replaced_coco_image_gives_another_key(tmp_path):
    file = write_coco(tmp_path)
    before = load_coco(str(file), str(tmp_path / "train"))._fingerprint
    assert load_coco(str(file), str(tmp_path / "train"))._fingerprint == before
    (tmp_path / "train" / "3.jpg").write_bytes(jpegs()[4])
    assert load_coco(str(file), str(tmp_path / "train"))._fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a COCO caption file"),
        ("[]", "is not a COCO caption file"),
        ('{"images": [{"id": 1}], "annotations": []}', "KeyError: 'file_name'"),
        ('{"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}', "KeyError: 7"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    file = tmp_path / "captions.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_coco(str(file), "")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_coco(str(tmp_path / "other.json"), "")


def test_text_and_lists_of_texts_are_joined(folder, tmp_path):
    args = data_args(dataset_name=[str(folder / "my_images"), str(folder / "my_coco" / "captions_{split}.json")])
    args.image_dir = str(folder / "my_coco" / "{split}")
    joined = mix_sources(load_sources(args, "train", streaming=False), "caption")
    assert joined[3]["caption"] == [CAPTIONS[3]] and joined[13]["caption"] == [CAPTIONS[3]] * 2


def test_weights_of_rows_by_number():
    features = datasets.Features({"image": datasets.Value("int64"), "caption": datasets.Value("string")})
    parts = [
        datasets.Dataset.from_dict({"image": range(size), "caption": [name] * size}, features)
        for name, size in (("a", 300), ("b", 300))
    ]
    joined = mix_sources(parts, "caption", [3, 1], seed=0)
    counts = Counter(joined["caption"])
    assert 2.5 < counts["a"] / counts["b"] < 3.5
    for name in "ab":  # every row of each is there
        assert {row["image"] for row in joined if row["caption"] == name} == set(range(300))
    assert joined["image"][:] == mix_sources(parts, "caption", [3, 1], seed=0)["image"][:]


def test_a_stream_on_disk_is_the_same(folder):
    args = data_args(dataset_name=str(folder / "my_tars"), image_column="jpg", caption_column="txt")
    (stream,) = load_sources(args, "train", streaming=True)
    assert to_disk(stream)[:] == load_sources(args, "train", streaming=False)[0][:]


def test_saved_folders_and_functions_can_be_streamed(tmp_path, monkeypatch):
    as_dataset().save_to_disk(tmp_path / "saved")
    monkeypatch.chdir(Path(__file__).parents[2] / "support")
    for spec in (str(tmp_path / "saved"), "caption_data:load"):
        (stream,) = load_sources(data_args(dataset_name=spec), "train", streaming=True)
        assert stream.num_shards == min(64, len(load()) if ":" in spec else 10)


def test_rows_without_a_part_end_no_shard(tmp_path):
    """A tar file in which some keys have no caption or no image."""
    (tar,) = write_tars(tmp_path / "tars", shards=1).iterdir()
    with tarfile.open(tar) as whole:
        members = [(member, whole.extractfile(member).read()) for member in whole]
    with tarfile.open(tar, "w") as less:
        for member, data in members:
            if member.name not in ("000000006.txt", "000000008.jpg"):
                less.addfile(member, io.BytesIO(data))
    args = data_args(dataset_name=str(tmp_path / "tars"), image_column="jpg", caption_column="txt")
    skipped = SkipLog(tmp_path, "train", None, max_fraction=0.5)
    stream = StreamingDataset(
        load_sources(args, "train", streaming=True), RowDecoder("jpg", "txt", skipped), buffer_size=0
    )
    expected = [[text] for number, text in enumerate(CAPTIONS) if number not in (6, 8)]
    assert [row["caption"] for row in islice(stream, 8)] == expected
    assert count_skipped(tmp_path / FILE) == {"no caption": 1, "no image": 1}


@pytest.mark.parametrize("size", [0, 100, 5 * 512 + 100])
def test_a_shard_cut_off_is_an_error(tmp_path, size):
    first, second = sorted(write_tars(tmp_path / "tars", shards=2).iterdir())
    second.write_bytes(second.read_bytes()[:size])
    args = data_args(dataset_name=str(tmp_path / "tars"), image_column="jpg", caption_column="txt")
    stream = StreamingDataset(load_sources(args, "train", streaming=True), reader(args, tmp_path), buffer_size=0)
    with pytest.raises(ValueError, match="shard 2 of 2 cannot be read from row 0 on: ReadError"):
        list(islice(stream, 10))


# ---- what is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": []}, "dataset_name is not set"),
        ({"dataset_name": ["a", "b"], "image_column": ["a", "b", "c"]}, "image_column names 3 columns for 2 datasets"),
        ({"dataset_name": ["a", "b"], "dataset_probabilities": [1]}, "give a number above 0 for each of the 2"),
        ({"dataset_name": ["a", "b"], "dataset_probabilities": [1, 0]}, "above 0"),
        ({"dataset_name": "a", "shuffle_buffer_size": -1}, "shuffle_buffer_size is -1"),
        ({"dataset_name": "a", "max_skipped_fraction": 2}, "max_skipped_fraction is 2"),
        ({"dataset_name": "a", "streaming": True, "cache_image_features": "all"}, "cache_image_features is all"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        data_args(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": 5}, r"does not take these dataset_kwargs: got an unexpected keyword argument 'sizes'"),
        ({"split": "test"}, "dataset_kwargs has split: 'test'"),
        ({"size": 0}, "size=0 must be a whole number, 1 or more"),
        ({"size": "4"}, "size='4' must be a whole number"),
    ],
)
def test_arguments_that_a_function_does_not_take(options, message):
    name = "microworld.dataset:load"
    with pytest.raises(ValueError, match=message):
        load_sources(data_args(dataset_name=name, dataset_kwargs=options, caption_column="captions"), "train", False)


def test_missing_column_is_named(folder):
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match=r"image_column: dataset '.*my_tars' has no column 'image'; it has jpg, json, txt"
        ):
            load_sources(data_args(dataset_name=str(folder / "my_tars")), "train", streaming)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "train-0.tar").write_bytes(b"no tar" * 1000)
    for name in (tmp_path, tmp_path / "tars"):
        for streaming in (False, True):
            with pytest.raises(ValueError, match="cannot be loaded") as error:
                load_sources(data_args(dataset_name=str(name)), "train", streaming)
            assert "\n" not in str(error.value)


def test_sources_by_their_keys(folder):
    args = data_args(dataset_name=["a", "b"], caption_column="text", dataset_probabilities=[1, 1])
    values = args.sources()
    assert (values["dataset_name"], values["caption_column"], values["dataset_probabilities"]) == (
        ["a", "b"],
        "text",
        [1, 1],
    )
    assert data_args(dataset_name="a", dataset_probabilities=[1.0]).sources()["dataset_probabilities"] == [1.0]
    assert json.dumps(values)
