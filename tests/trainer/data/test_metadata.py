"""Captions and answers that look like numbers, truth values or missing ones, in each file that can hold them."""

import csv
import json
import logging
import os
from pathlib import Path

import datasets
import pytest
from source_data import jpegs

from trainer.arguments import DataArguments
from trainer.data.metadata import as_text
from trainer.data.rows import InvalidRowError, as_rows, iterate_rows, read_captions
from trainer.data.sources import load_sources, load_split, mix_sources

# What a CSV file holds and what a JSON file holds, with the captions expected of both.
CSV = ["1984", "1.50", "true", "None", "N/A", "null", "nan", "007", "1e5", "a dog"]
MIXED = [1984, 1.5, True, "None", "N/A", False, 0, "7 cats", ["1", 2], "null", "a dog"]
MIXED_TEXTS = [
    ["1984"],
    ["1.5"],
    ["true"],
    ["None"],
    ["N/A"],
    ["false"],
    ["0"],
    ["7 cats"],
    ["1", "2"],
    ["null"],
    ["a dog"],
]


def write_images(folder: Path, number: int = 10) -> Path:
    folder.mkdir(parents=True)
    for index, jpeg in enumerate(jpegs()[:number]):
        (folder / f"{index}.jpg").write_bytes(jpeg)
    return folder


def write_csv(file: Path, captions: list) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("file_name", "caption"), *((f"{i}.jpg", text) for i, text in enumerate(captions))])


def write_jsonl(file: Path, captions: list) -> None:
    rows = [{"file_name": f"{index}.jpg", "caption": caption} for index, caption in enumerate(captions)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions_of(folder: Path, streaming: bool = False, image_column: str = "image", **options) -> list:
    """The captions of each row as training reads them, None where a row is invalid."""
    args = DataArguments(dataset_name=str(folder), image_column=image_column, **options)
    (source,) = load_sources(args, "train", streaming)
    rows = iterate_rows(source) if streaming else as_rows(source.with_format("arrow")[:])
    return [_captions(row) for row in rows]


def _captions(row: dict) -> list[str] | None:
    try:
        return read_captions(row["caption"], "row", "caption")
    except InvalidRowError:
        return None


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("folder_of_images", [True, False])
@pytest.mark.parametrize("captions", [CSV, ["1", "2"], ["1.50", "2"], ["True", "false"], ["N/A", "None"]])
def test_texts_of_csv_files(tmp_path, captions, folder_of_images, streaming):
    write_images(tmp_path / "d")
    write_csv(tmp_path / "d" / "metadata.csv", captions)
    if not folder_of_images:
        for file in (tmp_path / "d").glob("*.jpg"):
            file.unlink()
        (tmp_path / "d" / "metadata.csv").rename(tmp_path / "d" / "train.csv")
    column = "image" if folder_of_images else "file_name"
    assert captions_of(tmp_path / "d", streaming, column) == [[caption] for caption in captions]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("folder_of_images", [True, False])
@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (MIXED, MIXED_TEXTS),
        ([1984, 7], [["1984"], ["7"]]),
        ([1984, 0.25], [["1984"], ["0.25"]]),
        ([True, False], [["true"], ["false"]]),
        ([[1, 2], [3]], [["1", "2"], ["3"]]),
        ([["a"], "b"], [["a"], ["b"]]),
        (["2026-11-26", "2026-11-27"], [["2026-11-26"], ["2026-11-27"]]),
        (["a", None, "b"], [["a"], None, ["b"]]),
        ([None, None], [None, None]),
        ([["a", ""], [], ["b"]], [None, None, ["b"]]),
    ],
)
def test_texts_of_json_files(tmp_path, captions, expected, folder_of_images, streaming):
    write_images(tmp_path / "d") if folder_of_images else (tmp_path / "d").mkdir()
    write_jsonl(tmp_path / "d" / ("metadata.jsonl" if folder_of_images else "train.jsonl"), captions)
    column = "image" if folder_of_images else "file_name"
    if streaming and not folder_of_images:  # `datasets` makes a missing value of "null" in a column of several types
        expected = [None if texts == ["null"] else texts for texts in expected]
    assert captions_of(tmp_path / "d", streaming, column) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(1984, "1984"), (1.5, "1.5"), (3.0, "3"), (True, "true"), (False, "false"), ("None", "None"), (None, None)],
)
def test_texts_of_values(value, text):
    assert as_text(value) == text


def test_an_empty_cell_is_missing(tmp_path):
    write_images(tmp_path / "d", 2)
    write_csv(tmp_path / "d" / "metadata.csv", ["", "1984"])
    assert captions_of(tmp_path / "d") == [None, ["1984"]]


def test_numbers_and_texts_are_joined(tmp_path):
    folders = [write_images(tmp_path / name, 2) for name in ("numbers", "texts")]
    write_jsonl(folders[0] / "metadata.jsonl", [1, 2])
    write_jsonl(folders[1] / "metadata.jsonl", ["a", "b"])
    sources = load_sources(DataArguments(dataset_name=list(map(str, folders))), "train", False)
    assert mix_sources(sources, "caption")["caption"][:] == ["1", "2", "a", "b"]


# ---------------------------------------------------------------------------------------------------- image folders


@pytest.mark.parametrize("streaming", [False, True])
def test_metadata_above_the_folders_of_the_splits(tmp_path, streaming):
    write_images(tmp_path / "d" / "train", 3)
    write_images(tmp_path / "d" / "validation", 2)
    lines = [(f"train/{index}.jpg", text) for index, text in enumerate("abc")]
    lines += [(f"validation/{index}.jpg", text) for index, text in enumerate("xy")]
    rows = [json.dumps({"file_name": name, "caption": text}) + "\n" for name, text in lines]
    (tmp_path / "d" / "metadata.jsonl").write_text("".join(rows))
    assert captions_of(tmp_path / "d", streaming) == [["a"], ["b"], ["c"]]
    rows = load_split(str(tmp_path / "d"), "validation", streaming)
    rows = rows.cast_column("image", datasets.Image(decode=False)).with_format("arrow").iter(batch_size=1)
    rows = [row for table in rows for row in table.to_pylist()]
    assert [(os.path.basename(row["image"]["path"]), row["caption"]) for row in rows] == [
        ("0.jpg", "x"),
        ("1.jpg", "y"),
    ]


def test_images_without_a_line_are_named_once(tmp_path, caplog):
    write_images(tmp_path / "d", 5)
    write_jsonl(tmp_path / "d" / "metadata.jsonl", ["a", "b"])
    with caplog.at_level(logging.WARNING):
        assert captions_of(tmp_path / "d") == [["a"], ["b"]]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "trainer.data.metadata"]
    assert "3 file(s) such as 2.jpg are not used" in warning


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_other_images(tmp_path, streaming):
    """As in `datasets`: x_file_name names the file of x."""
    folder = write_images(tmp_path / "d", 2)
    rows = [{"photo_file_name": f"{index}.jpg", "caption": str(index)} for index in range(2)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source,) = load_sources(DataArguments(dataset_name=str(folder), image_column="photo"), "train", streaming)
    assert [(row["photo"]["path"], row["caption"]) for row in source] == [
        (str(folder / f"{index}.jpg"), str(index)) for index in range(2)
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,caption\n0.jpg,a dog, running\n", "line 2 has more cells than the header"),
        ("metadata.jsonl", '{"file_name": "0.jpg"\n', "line 1 is not JSON"),
        ("metadata.jsonl", '["0.jpg"]\n', "line 1 is not a JSON object"),
        ("metadata.jsonl", '{"image": "0.jpg"}\n', "has no column 'file_name'"),
        ("metadata.jsonl", '{"file_name": 7}\n', "file_name 7 in .* is not a text"),
    ],
)
def test_invalid_metadata_is_named(tmp_path, name, text, message):
    folder = write_images(tmp_path / "d", 1)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_split(str(folder), "train")


def test_slices_and_sums_of_splits_keep_their_texts(tmp_path):
    for split, captions in (("train", ["007", "N/A", "1.50"]), ("validation", ["true"])):
        write_images(tmp_path / split, len(captions))
        lines = "".join(f"{number}.jpg,{caption}\n" for number, caption in enumerate(captions))
        (tmp_path / split / "metadata.csv").write_text("file_name,caption\n" + lines)
    for split, due in (
        ("train[1:]", ["N/A", "1.50"]),
        ("train[:1]+validation", ["007", "true"]),
        ("all", ["007", "N/A", "1.50", "true"]),
        ("train[:34%]", ["007"]),
    ):
        assert load_split(str(tmp_path), split, texts=["caption"])["caption"][:] == due, split


def test_a_link_to_a_folder_with_metadata_above_its_splits(tmp_path):
    write_images(tmp_path / "data" / "train", 2)
    lines = [{"file_name": f"train/{number}.jpg", "caption": str(number)} for number in range(2)]
    (tmp_path / "data" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "link").symlink_to("data")
    assert load_split(str(tmp_path / "link"), "train", texts=["caption"])["caption"][:] == ["0", "1"]


def test_metadata_files_of_different_types(tmp_path):
    for folder, captions in (("a", ["x"]), ("b", [1984])):
        write_images(tmp_path / "train" / folder, 1)
        lines = [{"file_name": f"{number}.jpg", "caption": caption} for number, caption in enumerate(captions)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "train" / folder / "metadata.jsonl").write_text(text)
    found = load_split(str(tmp_path), "train", texts=["caption"])["caption"][:]
    assert sorted(found) == ["1984", "x"]


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/1.jpg", "file:///etc/1.jpg"])
def test_a_name_outside_the_folder_is_refused(tmp_path, name):
    write_images(tmp_path / "d", 1)
    (tmp_path / "d" / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "a"}))
    with pytest.raises(ValueError, match="is not inside the folder of its metadata file"):
        load_split(str(tmp_path / "d"), "train")


def test_a_replaced_image_changes_the_fingerprint(tmp_path):
    folder = write_images(tmp_path / "d", 2)
    write_csv(folder / "metadata.csv", ["a", "b"])
    first = load_split(str(folder), "train")._fingerprint
    assert load_split(str(folder), "train")._fingerprint == first
    (folder / "1.jpg").write_bytes(jpegs()[4])
    assert load_split(str(folder), "train")._fingerprint != first


@pytest.mark.parametrize("name", ["text", "csv", "json", "imagefolder"])
def test_a_folder_is_not_taken_for_a_builder(tmp_path, monkeypatch, name):
    write_images(tmp_path / name, 2)
    write_jsonl(tmp_path / name / "metadata.jsonl", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    assert load_split(name, "train")["caption"] == ["a", "b"]


def test_a_builder_is_not_taken_for_a_folder(tmp_path, monkeypatch):
    write_csv(tmp_path / "x.csv", ["7"])
    monkeypatch.chdir(tmp_path)
    files = {"train": str(tmp_path / "x.csv")}
    assert load_split("csv", "train", texts=["caption"], data_files=files)["caption"] == ["7"]


def test_home_folder(tmp_path, monkeypatch):
    write_images(tmp_path / "d", 1)
    write_jsonl(tmp_path / "d" / "metadata.jsonl", ["a"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_split("~/d", "train")["caption"] == ["a"]


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf://datasets/user/name", r"is a URL: give a name on the Hub \(user/name\)"),
        (
            "s3://bucket/data.parquet",
            r"dataset_name: parquet, dataset_kwargs: \{data_files: 's3://bucket/data.parquet'\}",
        ),
        (r"C:\data\photos", r"dataset 'C:\\data\\photos' does not exist"),
        ("C:/data", "does not exist"),
        ("some folder", "does not exist"),
        ("~/nowhere_at_all", "does not exist"),
        ("no_module:load", "No module named 'no_module'"),
        ("json:nothing", "should name an importable function"),
    ],
)
def test_names_that_are_no_dataset(spec, message):
    with pytest.raises(ValueError, match=message):
        load_split(spec, "train")


def test_a_method_of_a_class_can_be_named(tmp_path, monkeypatch):
    module = "import datasets\n\ndef load(split):\n    return datasets.Dataset.from_dict({'a': [split]})\n"
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "own_data.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_split("own_package.own_data:load", "train"), datasets.Dataset)
