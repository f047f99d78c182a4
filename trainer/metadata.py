"""CSV files and image folders, read by `datasets` without converting their texts: 1984, true, None, N/A stay text."""

import hashlib
import logging
import os
from collections.abc import Sequence
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
    elif metadata := _metadata_of(builder, spec, split):
        parts = [_load_metadata(file, builder.config.data_files[split], split, streaming, texts) for file in metadata]
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
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


def _metadata_of(builder: datasets.DatasetBuilder, spec: str, split: str) -> list[str]:
    """The metadata files of a split of a local image folder; none where `datasets` must read the folder itself."""
    config = builder.config
    changed = ("features", "filters", "drop_metadata", "metadata_filenames")
    if builder.name != "imagefolder" or any(getattr(config, name) for name in changed):
        return []
    files = (config.data_files or {}).get(split, [])
    found = [file for file in files if os.path.basename(file) in METADATA]
    if not found and files and not any(file.endswith((".parquet", ".zip")) for file in files):
        found = [str(Path(spec, name)) for name in METADATA if Path(spec, name).is_file()]
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
    rows = rows.rename_column("file_name", "image").cast_column("image", Value("string"))
    root = os.path.dirname(file)
    rows = rows.map(_with_path, fn_kwargs={"root": root, "state": file_dates(files)}, features=rows.features)
    folders = {os.path.dirname(image) for image in files}
    if root not in folders:  # the file is above the folders of the splits
        rows = rows.filter(_is_in, fn_kwargs={"folders": folders})
    elif not streaming:
        _warn_of_unnamed(file, files, rows["image"])
    return rows.cast_column("image", Image())


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


def file_dates(paths: Sequence[str]) -> str:
    """A key of the files' sizes and times."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        stat = os.stat(path) if os.path.isfile(path) else None
        digest.update(f"{stat and (stat.st_size, stat.st_mtime_ns)}".encode())
    return digest.hexdigest()
