"""What a task asks, from a dataset or from official files: rows under our own names, and images read when needed.

A row has the keys of the task's `columns` without the image: of "vqa" `question_id`, `image_id`, `question` and
`answers` (a list of texts), of "captions" and "retrieval" `image_id` and `captions`.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data.metadata import as_text
from trainer.data.sources import load_split, to_disk
from trainer.evaluation.formats import Row, index_images, read_captions, read_vqa
from trainer.evaluation.tasks.task import COLUMNS, Task

IDS = {"vqa": "question_id", "captions": "image_id", "retrieval": "image_id"}
OPTIONAL = {  # names that --columns may add to a task's own
    "vqa": ("image_id", "file_name"),
    "captions": ("image_id", "file_name", "domain"),
    "retrieval": ("image_id", "file_name"),
}
REFERENCES = {"vqa": "answers", "captions": "captions", "retrieval": "captions"}


@dataclass(frozen=True)
class Where:
    """Where the examples come from, as the command's options say; what is None the task says."""

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


def load_examples(task: Task, where: Where, need_references: bool = True) -> Examples:
    """All that the task asks, checked before the model starts to work.

    Raises:
        ValueError: a column, image or reference is missing, an id stands there twice, or a text is empty; the message
            names it and what to do.
    """
    if where.limit is not None and where.limit < 1:
        raise ValueError(f"--limit {where.limit} must be 1 or more; leave it out to take all.")
    if where.questions and task.kind != "vqa":
        raise ValueError(f"--questions belongs to tasks that ask; '{task.name}' is of kind {task.kind}.")
    official = where.questions or (where.annotations and where.images)
    if task.kind == "vqa" and where.annotations and not where.questions:
        raise ValueError(f"--annotations {where.annotations} needs --questions and --images beside it.")
    if official and where.dataset:
        raise ValueError("give either --dataset_name or official files, not both.")
    examples = _from_files(task, where) if official else _from_dataset(task, where)
    _check_rows(task, examples, need_references)
    return examples


def _from_files(task: Task, where: Where) -> Examples:
    if where.images is None:
        raise ValueError(f"--questions {where.questions} needs --images: the folder of the images it asks about.")
    if where.questions:
        rows, split = read_vqa(where.questions, where.annotations)
    else:
        rows, split = read_captions(where.annotations, where.split or task.split)
    if where.split and split != where.split:
        raise ValueError(f"--split {where.split}: the official files are of the split '{split}'; leave --split out.")
    rows, name = rows[: where.limit], where.questions or where.annotations
    files = _find_files([row.pop("file_name", row["image_id"]) for row in rows], where.images, name)
    return Examples(name, split, rows, lambda number: _read(files[number], rows[number], name))


def _from_dataset(task: Task, where: Where) -> Examples:
    name, split = where.dataset or task.dataset, where.split or task.split
    columns = _columns(task, where)
    options = task.dataset_kwargs if where.dataset is None else {}
    dataset = _load(name, split, where.limit, texts=list(columns.values()), **options)
    for key, column in columns.items():
        if column not in dataset.column_names:
            raise ValueError(
                f"dataset '{name}' has no column '{column}' ({key}); it has {', '.join(dataset.column_names)}. Say "
                f"which it is by --columns '{{{key}: NAME}}'."
            )
    dataset = dataset.select(range(min(where.limit or len(dataset), len(dataset))))
    texts = {key: column for key, column in columns.items() if key != "image"}
    table = dataset.select_columns(list(dict.fromkeys(texts.values())))
    rows = [{key: record[column] for key, column in texts.items()} for record in table] or [{}] * len(dataset)
    id_key = IDS[task.kind]
    rows = [{**row, id_key: _as_id(row.get(id_key, number))} for number, row in enumerate(rows)]
    if where.images:
        cells = _find_files([row.pop("file_name") for row in rows], where.images, name)
    else:
        cells = _undecoded(dataset, columns["image"])
    if rows and "image_id" not in rows[0]:
        rows = [{**row, "image_id": _digest(cell)} for row, cell in zip(rows, cells, strict=True)]
    if where.annotations:
        _add_annotations(rows, where.annotations, split)
    return Examples(name, split, rows, lambda number: _read(cells[number], rows[number], name))


def _load(name: str, split: str, limit: int | None, **kwargs) -> datasets.Dataset:
    """The split; with a limit, only its first rows are downloaded from the Hub."""
    streaming = limit is not None and split.isidentifier() and not Path(name).exists()
    dataset = load_split(name, split, streaming, **kwargs)
    return to_disk(dataset.take(limit)) if isinstance(dataset, datasets.IterableDataset) else dataset


def _columns(task: Task, where: Where) -> dict[str, str]:
    """The dataset's column for each of our names: the task's, or what --columns says; null leaves one out."""
    own = where.columns or {}
    known = dict.fromkeys([*task.columns, *OPTIONAL[task.kind]])
    if unknown := sorted(own.keys() - known.keys()):
        raise ValueError(f"--columns: '{unknown[0]}' is none of this task's names: {', '.join(known)}.")
    columns = {key: column for key, column in {**task.columns, **own}.items() if column is not None}
    if where.images and "file_name" not in columns:
        raise ValueError(
            f"--images {where.images}: which file is a row's? Name the column: --columns '{{file_name: NAME}}'."
        )
    columns.pop("image" if where.images else "file_name", None)
    needed = [key for key in COLUMNS[task.kind] if key not in columns and not (key == "image" and where.images)]
    if needed:
        raise ValueError(f"--columns leaves out '{needed[0]}', which task '{task.name}' needs.")
    return columns


def _undecoded(dataset: datasets.Dataset, column: str) -> Sequence[Any]:
    """The column, read row by row: paths, URLs, or {"bytes", "path"} as `datasets` stores an image."""
    if isinstance(dataset.features[column], datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset[column]


def _find_files(names: list[Any], folder: str, source: str) -> list[Path]:
    """The file in `folder` of each name or number.

    Raises:
        ValueError: some are not there.
    """
    files = index_images(folder)
    keys = [Path(name).name if isinstance(name, str) else name for name in names]
    keys = [key if key in files else _as_id(key) for key in keys]
    if missing := sorted({str(key) for key in keys if key not in files}):
        raise ValueError(
            f"--images {folder} lacks {len(missing)} of the {len(set(keys))} images of {source}: no file is, or "
            f"ends in, '{missing[0]}'. Give the folder that holds them all, or --limit."
        )
    return [files[key] for key in keys]


def _read(cell: Any, row: Row, source: str) -> Image.Image:
    """The image of a cell: a path, a URL, or `datasets`' own record.

    Raises:
        ValueError: there is none, or it cannot be read; the message names the row's image.
    """
    name = f"{source}: image {row['image_id']}"
    if cell is None:
        raise ValueError(f"{name} is missing: the row has none. Filter such rows out.")
    if isinstance(cell, dict):
        try:
            cell = Image.open(BytesIO(cell["bytes"])) if cell["bytes"] else cell["path"]
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error}. Filter such rows out, or mend them.") from error
    return read_image(cell, name)


def _digest(cell: Any) -> str:
    """Names an image by what it is, where no column does."""
    content = cell["bytes"] or cell["path"].encode() if isinstance(cell, dict) else str(cell).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _as_id(value: Any) -> Any:
    """The official files number questions and images; some datasets hold the numbers as texts or floats."""
    value = as_text(value)
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _add_annotations(rows: list[Row], file: str, split: str) -> None:
    """Replace captions, and add domains, by those of an official file, image for image."""
    found = {record["image_id"]: record for record in read_captions(file, split)[0]}
    for row in rows:
        if (record := found.get(row["image_id"])) is None:
            raise ValueError(
                f"--annotations {file} has no image {row['image_id']}; give that of this dataset and split."
            )
        row |= {key: record[key] for key in ("captions", "domain") if key in record}


def _check_rows(task: Task, examples: Examples, need_references: bool) -> None:
    """Bring references into one form, and raise a ValueError for what cannot be asked or judged."""
    id_key, reference = IDS[task.kind], REFERENCES[task.kind]
    where, seen = f"{examples.dataset} ({examples.split})", set()
    if not examples.rows:
        raise ValueError(f"{where} has no rows: there is nothing to evaluate.")
    for row in examples.rows:
        name = f"{where}: {id_key} {row[id_key]}"
        if row[id_key] is None:
            raise ValueError(f"{where}: a row has no {id_key}. Give every row one, or --columns '{{{id_key}: null}}'.")
        if row[id_key] in seen:
            raise ValueError(f"{name} stands there twice; keep one row for each.")
        seen.add(row[id_key])
        if task.kind == "vqa":
            row["question"] = as_text(row["question"])
            if not isinstance(row["question"], str) or not row["question"].strip():
                raise ValueError(f"{name}: the question is {row['question']!r}, not a text. Filter such rows out.")
        row[reference] = _as_texts(row.get(reference))
        if need_references and not row[reference]:
            raise ValueError(
                f"{name} has no {reference} to compare with. If the split is one without references, write its "
                "predictions alone: --predictions_only."
            )
        if not all(isinstance(text, str) for text in row[reference]):
            raise ValueError(f"{name}: {reference} {row[reference]!r} must be texts. Filter such rows out.")


def _as_texts(value: Any) -> list[Any]:
    """One text, a list of them, or VQA's list of `{"answer": text}` -> a list of texts; none is an empty list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [as_text(entry["answer"] if isinstance(entry, dict) and "answer" in entry else entry) for entry in values]
