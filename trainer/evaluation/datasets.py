"""Load the data of a task: rows with the project's column names, and images, which are read on demand.

A row has the keys of the task's `columns` except the image. For the kind "vqa" these are `question_id`, `image_id`,
`question` and `answers` (a list of texts), for "captions" and "retrieval" `image_id` and `captions`. The functions
raise a ValueError that names the option, the file or the row for data that cannot be used.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data.metadata import as_text
from trainer.data.rows import check_column
from trainer.data.sources import load_split, to_disk
from trainer.evaluation.formats import Row, read_captions, read_vqa
from trainer.evaluation.tasks.task import COLUMNS, Task

IDS = {"vqa": "question_id", "captions": "image_id", "retrieval": "image_id"}
REFERENCES = {"vqa": "answers", "captions": "captions", "retrieval": "captions"}
OPTIONAL = {  # names that --columns may add to a task's own
    "vqa": ("image_id", "file_name"),
    "captions": ("image_id", "file_name", "domain"),
    "retrieval": ("image_id", "file_name"),
    "text-retention": (),
}


@dataclass(frozen=True)
class DatasetOverrides:
    """The command's options that replace or limit a task's dataset; None keeps the task's own."""

    dataset: str | None = None
    split: str | None = None
    limit: int | None = None
    columns: dict[str, str | None] | None = None
    questions: str | None = None
    annotations: str | None = None
    images: str | None = None


@dataclass(frozen=True)
class Examples:
    """Rows, and a function from a row's number to its image."""

    dataset: str
    split: str
    rows: list[Row]
    image: Callable[[int], Image.Image]


def load_examples(task: Task, overrides: DatasetOverrides, need_references: bool = True) -> Examples:
    """All rows of a task, checked before the model is loaded."""
    official = overrides.questions or (overrides.annotations and overrides.images)
    if task.kind == "vqa" and overrides.annotations and not overrides.questions:
        raise ValueError(f"--annotations {overrides.annotations} requires --questions and --images.")
    if official and overrides.dataset:
        raise ValueError("Give either --dataset_name or official files, not both.")
    if official and overrides.images is None:
        raise ValueError(f"--questions {overrides.questions} requires --images, the folder of the images.")
    examples = _from_files(task, overrides) if official else _from_dataset(task, overrides)
    _check_rows(task, examples, need_references)
    return examples


# ------------------------------------------------------------------------------------------------------ official files
def _from_files(task: Task, overrides: DatasetOverrides) -> Examples:
    if overrides.questions:
        rows, split = read_vqa(overrides.questions, overrides.annotations)
    else:
        rows, split = read_captions(overrides.annotations, overrides.split or task.split)
    if overrides.split and split != overrides.split:
        raise ValueError(f"--split {overrides.split}: the official files contain the split '{split}'; omit --split.")
    rows, name = rows[: overrides.limit], overrides.questions or overrides.annotations
    files = _find_files([row.pop("file_name", row["image_id"]) for row in rows], overrides.images, name)
    return Examples(name, split, rows, partial(_read, files, rows, name))


def _find_files(names: list[Any], folder: str, source: str) -> list[Path]:
    """The file in `folder` or its subfolders for each file name or image number."""
    files = _index_images(folder)
    keys = [Path(name).name if isinstance(name, str) else name for name in names]
    keys = [key if key in files else _as_id(key) for key in keys]
    if missing := sorted({str(key) for key in keys if key not in files}):
        raise ValueError(
            f"--images {folder} lacks {len(missing)} of the {len(set(keys))} images of {source}, such as "
            f"'{missing[0]}' (a file name, or the number that it ends in). Give the folder of all images, or --limit."
        )
    return [files[key] for key in keys]


def _index_images(folder: str) -> dict[str | int, Path]:
    """Every file in a folder and its subfolders, by its name and by the number that the name ends in."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    if not files:
        raise ValueError(f"--images {folder} is not a folder with images.")
    found: dict[str | int, Path] = {file.name: file for file in files}
    for file in files:
        number = file.stem.split("_")[-1]
        if number.isdecimal():
            found.setdefault(int(number), file)
    return found


# ------------------------------------------------------------------------------------------------------------ datasets
def load_columns(task: Task, overrides: DatasetOverrides) -> tuple[str, str, datasets.Dataset, dict[str, str]]:
    """The dataset's name, its split, its first `limit` rows, and its column for each of our names."""
    name, split, limit = overrides.dataset or task.dataset, overrides.split or task.split, overrides.limit
    columns = _columns(task, overrides)
    options = task.dataset_kwargs if overrides.dataset is None else {}
    # With a limit, only the first rows of a dataset on the Hub are downloaded.
    streaming = limit is not None and split.isidentifier() and not Path(name).exists()
    dataset = load_split(name, split, streaming, texts=list(columns.values()), **options)
    if isinstance(dataset, datasets.IterableDataset):
        dataset = to_disk(dataset.take(limit))
    for key, column in columns.items():
        check_column(column, dataset.column_names, f"dataset '{name}'", f"--columns '{{{key}: NAME}}'")
    return name, split, dataset.select(range(min(limit or len(dataset), len(dataset)))), columns


def _columns(task: Task, overrides: DatasetOverrides) -> dict[str, str]:
    """The dataset's column for each of our names, from the task and --columns; null omits a column."""
    known = dict.fromkeys([*task.columns, *OPTIONAL[task.kind]])
    if unknown := sorted((overrides.columns or {}).keys() - known.keys()):
        raise ValueError(f"--columns: unknown name '{unknown[0]}'; this task has {', '.join(known)}.")
    columns = {key: column for key, column in (task.columns | (overrides.columns or {})).items() if column is not None}
    if overrides.images and "file_name" not in columns:
        raise ValueError(
            f"--images {overrides.images} requires a column of file names: --columns '{{file_name: NAME}}'."
        )
    columns.pop("image" if overrides.images else "file_name", None)
    missing = [key for key in COLUMNS[task.kind] if key not in columns and not (key == "image" and overrides.images)]
    if missing:
        raise ValueError(f"--columns: task '{task.name}' requires '{missing[0]}', so it must not be null.")
    return columns


def _from_dataset(task: Task, overrides: DatasetOverrides) -> Examples:
    name, split, dataset, columns = load_columns(task, overrides)
    texts = {key: column for key, column in columns.items() if key != "image"}
    table = dataset.select_columns(list(dict.fromkeys(texts.values())))
    rows = [{key: record[column] for key, column in texts.items()} for record in table] or [{}] * len(dataset)
    id_key = IDS[task.kind]
    rows = [{**row, id_key: _as_id(row.get(id_key, number))} for number, row in enumerate(rows)]
    if overrides.images:
        cells = _find_files([row.pop("file_name") for row in rows], overrides.images, name)
    else:
        cells = _undecoded(dataset, columns["image"])
    if rows and "image_id" not in rows[0]:
        rows = [{**row, "image_id": _digest(cell)} for row, cell in zip(rows, cells, strict=True)]
    if overrides.annotations:
        _add_annotations(rows, overrides.annotations, split)
    return Examples(name, split, rows, partial(_read, cells, rows, name))


def _undecoded(dataset: datasets.Dataset, column: str) -> Sequence[Any]:
    """The column, read row by row: paths, URLs, or {"bytes", "path"}, as `datasets` stores an image."""
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset[column]


def _digest(cell: Any) -> str:
    """An id for an image without an id column, computed from its bytes, path or URL."""
    content = cell["bytes"] or cell["path"].encode() if isinstance(cell, dict) else str(cell).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _as_id(value: Any) -> Any:
    """Ids are integers in the official files; some datasets store them as texts or floats."""
    value = as_text(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _add_annotations(rows: list[Row], file: str, split: str) -> None:
    """Replace the captions with those of an official file, and add its domains."""
    found = {record["image_id"]: record for record in read_captions(file, split)[0]}
    for row in rows:
        if (record := found.get(row["image_id"])) is None:
            raise ValueError(
                f"--annotations {file} has no image_id {row['image_id']}; give the file of this dataset and split."
            )
        row |= {key: record[key] for key in ("captions", "domain") if key in record}


# ----------------------------------------------------------------------------------------------------- images and rows
def _read(cells: Sequence[Any], rows: list[Row], source: str, number: int) -> Image.Image:
    """The image of a row, from a path, a URL, or a record of `datasets`."""
    cell, name = cells[number], f"{source}: image {rows[number]['image_id']}"
    if cell is None:
        raise ValueError(f"{name} is missing. Filter such rows out.")
    return read_image(cell["bytes"] or cell["path"] if isinstance(cell, dict) else cell, name)


def _check_rows(task: Task, examples: Examples, need_references: bool) -> None:
    """Convert references to lists of texts, and raise a ValueError for an invalid row."""
    id_key, reference = IDS[task.kind], REFERENCES[task.kind]
    where, seen = f"{examples.dataset} ({examples.split})", set()
    if not examples.rows:
        raise ValueError(f"{where} has no rows.")
    for row in examples.rows:
        name = f"{where}: {id_key} {row[id_key]}"
        if row[id_key] is None:
            raise ValueError(f"{where}: a row has no {id_key}. Add it, or set --columns '{{{id_key}: null}}'.")
        if row[id_key] in seen:
            raise ValueError(f"{name} occurs twice; keep one.")
        seen.add(row[id_key])
        if task.kind == "vqa":
            row["question"] = as_text(row["question"])
            if not isinstance(row["question"], str) or not row["question"].strip():
                raise ValueError(f"{name}: question {row['question']!r} must be a text. Filter such rows out.")
        row[reference] = _as_texts(row.get(reference))
        if need_references and not row[reference]:
            raise ValueError(
                f"{name} has no {reference}. For a split without references, set --predictions_only to write the "
                "predictions."
            )
        if not all(isinstance(text, str) for text in row[reference]):
            raise ValueError(f"{name}: {reference} {row[reference]!r} must be texts. Filter such rows out.")


def _as_texts(value: Any) -> list[Any]:
    """A text, a list of texts, or VQA's list of {"answer": text} -> a list of texts; None gives an empty list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [as_text(entry["answer"] if isinstance(entry, dict) and "answer" in entry else entry) for entry in values]
