"""Load CSV files and local image folders without converting their texts: 1984, true, None and N/A stay text."""

import csv
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetInfo, Features, Image, IterableDataset

LOADING = ("verification_mode", "keep_in_memory", "save_infos", "num_proc")  # of `load_dataset`, not of its builders
METADATA = ("metadata.csv", "metadata.jsonl")
IMAGE_COLUMN = re.compile(r"(?:(.+)_)?file_name")
logger = logging.getLogger(__name__)


def load_files(
    spec: str, split: str, streaming: bool = False, texts: Sequence[str] = (), **kwargs: Any
) -> Dataset | IterableDataset:
    """Like `load_dataset`, but the columns `texts` of CSV files and of image folders' metadata keep their text.

    A local image folder with metadata is not streamed. Its metadata file may be in the parent folder of the splits,
    with names such as `train/1.jpg`.
    """
    options = {name: value for name, value in kwargs.items() if name not in LOADING}
    if os.path.isdir(spec) and "data_files" not in options and any(Path(spec, name).is_file() for name in METADATA):
        options["data_dir"] = spec  # also if it has as many text files as images
        builder = datasets.load_dataset_builder("imagefolder", **options)
    else:
        builder = datasets.load_dataset_builder(spec, **options)
    if hasattr(builder.config, "converters"):  # the CSV reader
        texts_as_written = {"converters": dict.fromkeys(texts, str), "keep_default_na": False, "na_values": [""]}
        kwargs = {**texts_as_written, **kwargs}
    elif builder.name == "imagefolder" and (rows := _load_image_folder(builder, spec, split, texts)) is not None:
        return rows
    if "/" in spec and not (streaming or "data_files" in kwargs or os.path.exists(spec)):  # else it may be a builder
        kwargs |= _files_of_split(builder, split)
    rows = datasets.load_dataset(spec, split=split, streaming=streaming, **kwargs)
    if rows.features is None and (table := next(rows.with_format("arrow").iter(batch_size=1), None)):
        return rows.cast(Features.from_arrow_schema(table.schema))  # the stream of a CSV file has no types yet
    return rows


def _files_of_split(builder: datasets.DatasetBuilder, split: str) -> dict[str, Any]:
    """The argument with which `load_dataset` downloads one split of a dataset on the Hub instead of all.

    Raises:
        ValueError: the dataset has no such split.
    """
    files = builder.config.data_files or {}
    name = split.partition("[")[0]  # of "train[:100]"
    if name in files:
        return {"data_files": {name: files[name]}}
    if files and name.isidentifier() and name != "all":
        raise ValueError(f"Unknown split '{name}'. It has {', '.join(files)}.")
    return {}


def _load_image_folder(
    builder: datasets.DatasetBuilder, spec: str, split: str, texts: Sequence[str]
) -> Dataset | None:
    """The rows of a split such as `train[:10%]+validation`; None if `datasets` must read the folder itself."""
    files = builder.config.data_files or {}
    parts = []
    for part in files if split == "all" else split.split("+"):
        part = str(part).strip()
        name = part.partition("[")[0]
        metadata = _find_metadata(builder, spec, name)
        if not metadata:
            return None
        rows = [row for file in metadata for row in _read_metadata(file, files[name])]
        dataset = _as_dataset(rows, texts, file_dates(files[name]))
        (piece,) = datasets.ReadInstruction.from_spec(part).to_absolute({name: len(dataset)})
        parts.append(dataset.select(range(piece.from_, piece.to)))
    return datasets.concatenate_datasets(parts)


def _find_metadata(builder: datasets.DatasetBuilder, spec: str, split: str) -> list[str]:
    """The metadata files of a split of a local image folder; none if `datasets` must read the folder itself."""
    config = builder.config
    if any(getattr(config, name) for name in ("features", "filters", "drop_metadata", "metadata_filenames")):
        return []
    files = (config.data_files or {}).get(split, [])
    found = [file for file in files if os.path.basename(file) in METADATA]
    if not found and files and not any(file.endswith((".parquet", ".zip")) for file in files):
        root = Path(spec).resolve()  # as in the paths of the images
        found = [str(root / name) for name in METADATA if (root / name).is_file()]
    return [] if any("://" in file for file in found) else found


def _read_metadata(file: str, files: Sequence[str]) -> list[dict[str, Any]]:
    """The rows whose images are in the folders of `files`, with absolute paths as `file_name`."""
    rows = list(_read_csv(file) if file.endswith(".csv") else _read_jsonl(file))
    columns = {name for row in rows for name in row if IMAGE_COLUMN.fullmatch(name)}
    if rows and not columns:
        raise ValueError(f"{file} has no column 'file_name' with the image of each row.")
    root, folders, named = os.path.dirname(file), {os.path.dirname(path) for path in files}, set()
    kept = []
    for row in rows:
        row |= {name: _image_path(row[name], root) for name in columns & row.keys()}
        paths = {row[name] for name in columns & row.keys() if row[name]}
        named |= paths
        if root in folders or folders & set(map(os.path.dirname, paths)):  # else the row belongs to another split
            kept.append(row)
    if root in folders:
        _warn_of_unnamed(file, files, named)
    return kept


def _read_csv(file: str) -> Iterator[dict[str, Any]]:
    """Rows of texts; an empty cell is None."""
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
        reader = csv.DictReader(lines)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{file}, line {reader.line_num} has more cells than the header; put texts with commas in quotes."
                )
            yield {name: value or None for name, value in row.items()}


def _read_jsonl(file: str) -> Iterator[dict[str, Any]]:
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
                if not isinstance(row, dict):
                    raise ValueError(f"{file}, line {number} is not a JSON object.")
                yield row


def _as_dataset(rows: list[dict[str, Any]], texts: Sequence[str], state: str) -> Dataset:
    """The rows as a dataset. `state` is part of its fingerprint, so that replaced images are detected.

    As in `datasets`, the column `file_name` becomes the image column `image`, and `x_file_name` becomes `x`.
    """
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name in columns.keys() & set(texts):
        is_list = any(isinstance(value, list) for value in columns[name])
        columns[name] = list(map(as_text_list if is_list else as_text, columns[name]))
    dataset = Dataset.from_dict(columns, info=DatasetInfo(description=state), on_mixed_types="use_json")
    for name in columns:
        if match := IMAGE_COLUMN.fullmatch(name):
            column = match[1] or "image"
            dataset = dataset.rename_column(name, column).cast_column(column, Image())
    return dataset


def _image_path(name: Any, root: str) -> str | None:
    """The absolute path of an image; raise a ValueError if `name` is not text or outside of `root`."""
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueError(f"file_name {name!r} in {root} is not a text; put it in quotes.")
    path = os.path.normpath(name).replace("\\", "/")
    if "://" in name or os.path.isabs(path) or path.split("/")[0] == "..":
        raise ValueError(f"file_name '{name}' is not inside the folder of its metadata file, {root}.")
    return os.path.join(root, path)


def _warn_of_unnamed(file: str, files: Sequence[str], named: set[str]) -> None:
    root = os.path.dirname(file)
    unnamed = {image for image in files if os.path.dirname(image) == root} - named - {file}
    if unnamed:
        example = os.path.basename(min(unnamed))
        logger.warning(f"{len(unnamed):,} file(s) such as {example} are not used, since {file} does not list them.")


def as_text(value: Any) -> Any:
    """Convert a number, boolean or date back to the text in the JSON file; return other values unchanged."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # NaN is how pandas writes a missing value
        return None if math.isnan(value) else f"{value:.15g}"
    if isinstance(value, datetime):  # how pyarrow reads a column of dates
        return str(value).removesuffix(" 00:00:00")
    return str(value) if isinstance(value, (int, date)) else value


def as_text_list(value: Any) -> list[Any]:
    return [as_text(text) for text in (value if isinstance(value, list) else [value])]


def file_dates(paths: Sequence[str]) -> str:
    """A hash of the files' sizes and modification times."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        stat = os.stat(path) if os.path.isfile(path) else None
        digest.update(f"{stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return digest.hexdigest()
