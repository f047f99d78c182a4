"""CSV files and image folders, read by `datasets` without converting their texts: 1984, true, None, N/A stay text."""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Image, IterableDataset, Value

LOADING = ("verification_mode", "keep_in_memory", "save_infos", "num_proc")  # of `load_dataset`, not of its builders
METADATA = ("metadata.csv", "metadata.jsonl")
logger = logging.getLogger(__name__)


def load_files(
    spec: str, split: str, streaming: bool = False, texts: Sequence[str] = (), **kwargs: Any
) -> Dataset | IterableDataset:
    """As `load_dataset`, but columns of `texts` in CSV files, metadata.csv and metadata.jsonl keep their text.

    A metadata file may also be beside the folders of the splits, with names such as `train/1.jpg`.
    """
    options = {name: value for name, value in kwargs.items() if name not in LOADING}
    builder = datasets.load_dataset_builder(spec, **options)
    if hasattr(builder.config, "converters"):
        kwargs = {**as_written(texts), **kwargs}
    elif metadata := _metadata_of_parts(builder, spec, split):
        parts = []
        for part, files in metadata.items():
            name = part.partition("[")[0]
            images = builder.config.data_files[name]
            rows = _joined([_load_metadata(file, images, name, streaming, texts) for file in files])
            parts.append(_sliced(rows, part))
        return _joined(parts)
    if "/" in spec and not (streaming or "data_files" in kwargs or os.path.exists(spec)):  # else it may be a builder
        kwargs |= _files_of_split(builder, split)
    return _with_features(datasets.load_dataset(spec, split=split, streaming=streaming, **kwargs))


def _files_of_split(builder: datasets.DatasetBuilder, split: str) -> dict[str, Any]:
    """The argument by which `load_dataset` downloads one split of a dataset on the Hub; without it, it takes all.

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


def _with_features(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """With the types of the columns, which the stream of a CSV file does not have before its first row."""
    if rows.features is None and (table := next(rows.with_format("arrow").iter(batch_size=1), None)):
        return rows.cast(Features.from_arrow_schema(table.schema))
    return rows


def as_written(texts: Sequence[str]) -> dict[str, Any]:
    """Options of the CSV reader that keep columns as text; only an empty cell is missing."""
    return {"converters": dict.fromkeys(texts, str), "keep_default_na": False, "na_values": [""]}


def _metadata_of_parts(builder: datasets.DatasetBuilder, spec: str, split: str) -> dict[str, list[str]]:
    """The metadata files of each part of a split such as `train[:10%]+validation`; empty if one part has none."""
    parts = builder.config.data_files or () if split == "all" else split.split("+")
    parts = [str(part).strip() for part in parts]
    found = {part: _metadata_of(builder, spec, part.partition("[")[0]) for part in parts}
    return found if all(found.values()) else {}


def _sliced(rows: Dataset | IterableDataset, part: str) -> Dataset | IterableDataset:
    name = part.partition("[")[0]
    if part == name:
        return rows
    if isinstance(rows, IterableDataset):
        raise ValueError(f"split '{part}' is a slice, which a stream does not have; name '{name}'.")
    (piece,) = datasets.ReadInstruction.from_spec(part).to_absolute({name: len(rows)})
    return rows.select(range(piece.from_, piece.to))


def _joined(parts: list[Dataset | IterableDataset]) -> Dataset | IterableDataset:
    return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _metadata_of(builder: datasets.DatasetBuilder, spec: str, split: str) -> list[str]:
    """The metadata files of a split of a local image folder; none where `datasets` must read the folder itself."""
    config = builder.config
    changed = ("features", "filters", "drop_metadata", "metadata_filenames")
    if builder.name != "imagefolder" or any(getattr(config, name) for name in changed):
        return []
    files = (config.data_files or {}).get(split, [])
    found = [file for file in files if os.path.basename(file) in METADATA]
    if not found and files and not any(file.endswith((".parquet", ".zip")) for file in files):
        root = Path(spec).resolve()  # as the paths of the images are
        found = [str(root / name) for name in METADATA if (root / name).is_file()]
    return [] if any("://" in file for file in found) else found


def _load_metadata(
    file: str, files: Sequence[str], split: str, streaming: bool, texts: Sequence[str]
) -> Dataset | IterableDataset:
    """The rows of one metadata file whose images are in the folders of `files`, with the column `image`."""
    kind, options = ("csv", as_written([*texts, "file_name"])) if file.endswith(".csv") else ("json", {})
    rows = datasets.load_dataset(kind, data_files={split: file}, split=split, streaming=streaming, **options)
    rows = _with_features(rows)
    if "file_name" not in rows.column_names:
        raise ValueError(f"{file} has no column 'file_name', the image of each row.")
    rows = _with_texts(rows, [name for name in texts if name in rows.column_names and name != "file_name"])
    rows = rows.rename_column("file_name", "image").cast_column("image", Value("string"))
    root = os.path.dirname(file)
    rows = rows.map(_with_path, fn_kwargs={"root": root, "state": file_dates(files)}, features=rows.features)
    folders = {os.path.dirname(image) for image in files}
    if root not in folders:  # the file is above the folders of the splits
        rows = rows.filter(_is_in, fn_kwargs={"folders": folders})
    elif not streaming:
        _warn_of_unnamed(file, files, rows["image"])
    return rows.cast_column("image", Image())


def _with_texts(rows: Dataset | IterableDataset, columns: Sequence[str]) -> Dataset | IterableDataset:
    """Numbers, truth values and dates of these columns as texts, so that the rows of several files can be joined."""
    for name in columns:
        kind = rows.features[name]
        if isinstance(kind, Value) and kind.dtype not in ("string", "large_string"):
            features = Features({**rows.features, name: Value("string")})
            rows = rows.map(_with_text, fn_kwargs={"name": name}, features=features)
    return rows


def _with_text(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: as_text(row[name])}


def _with_path(row: dict[str, Any], root: str, state: str) -> dict[str, Any]:
    """The image's path; `state` is part of the cache's key, so that a replaced image is noticed."""
    name = row["image"]
    if name is None:
        return {"image": None}
    path = os.path.normpath(name).replace("\\", "/")
    if "://" in name or os.path.isabs(path) or path.split("/")[0] == "..":
        raise ValueError(f"file_name '{name}' is not inside the folder of its metadata file, {root}.")
    return {"image": os.path.join(root, path)}


def _is_in(row: dict[str, Any], folders: set[str]) -> bool:
    return row["image"] is not None and os.path.dirname(row["image"]) in folders


def _warn_of_unnamed(file: str, files: Sequence[str], named: Sequence[str | None]) -> None:
    root = os.path.dirname(file)
    unnamed = {image for image in files if os.path.dirname(image) == root} - set(named) - {file}
    if unnamed:
        example = os.path.basename(min(unnamed))
        logger.warning(f"{file} does not name {len(unnamed):,} file(s) of its folder, such as {example}: not used.")


def as_text(value: Any) -> Any:
    """A number, truth value or date as the text that it was in a JSON file; everything else as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):  # not a number is how pandas writes a missing value
        return None if math.isnan(value) else f"{value:.15g}"
    if isinstance(value, datetime):  # how pyarrow reads a column of dates
        return str(value).removesuffix(" 00:00:00")
    return str(value) if isinstance(value, (int, date)) else value


def file_dates(paths: Sequence[str]) -> str:
    """A key of the files' sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        stat = os.stat(path) if os.path.isfile(path) else None
        digest.update(f"{stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return digest.hexdigest()
