"""Where the examples come from: datasets by name, and the rows a training step sees."""

import copy
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any

import datasets
import pyarrow as pa
import torch
from datasets.exceptions import DatasetsError
from torch.utils.data import Dataset

from trainer.infilling import seeded_rng
from trainer.metadata import as_text, load_files

DOCUMENTS, REPLACEMENTS = 1, 5  # random streams; `seeded_rng` has one for each purpose, captions are stream 0
JSON = getattr(pa, "JsonType", ())  # since pyarrow 19
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAX_REPLACEMENTS = 100  # rows that are tried in the place of a flawed one


class DataError(ValueError):
    """What is wrong with the data: one line, also if it comes out of a worker, whose traceback is then the message."""

    def __init__(self, message: str):
        from_worker = message.startswith("Caught ")
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip() if from_worker else message)


class EpochDataset(Dataset):
    """Rows that know their place: each carries `index` and `epoch`, and, with `texts`, a `document` to replay.

    Captions and corruptions are drawn from (seed, epoch, index), hence alike in every process layout. The epoch lives
    in shared memory, so that persistent workers see it change. It is deliberately not called `set_epoch`: accelerate
    calls a method of that name on one process and not on several, and on evaluation data too.

    A row that `read` finds flawed is replaced by another one, drawn from (seed, epoch, index) too, so that every batch
    keeps its size. `index` stays that of the flawed row, since it seeds the draws; `row_name`, for messages, is the
    replacement's.

    Args:
        dataset: rows by number.
        texts: the documents of the text replay; one is drawn for each row and epoch.
        seed: of that draw.
        read: makes a row of what the dataset holds, or None of a flawed one; it is given the row and its number. None
            leaves rows as they are.

    Raises:
        ValueError: the dataset is a streaming one; while reading: one row after the other is flawed.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        texts: datasets.Column | list[str] | None = None,
        seed: int = 0,
        read: Callable[[dict[str, Any], int], dict[str, Any] | None] | None = None,
    ):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "the dataset is a streaming one; give it to `trainer.streaming.StreamingDataset`, or load it with "
                "streaming=False."
            )
        self.dataset = dataset
        self.texts = texts
        self.seed = seed
        self.read = read
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._complete(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """One read for a whole batch, which `datasets` does much faster than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        rows = self.dataset.__getitems__(indices)
        return [self._complete(row, index) for row, index in zip(rows, indices, strict=True)]

    def at_first_epoch(self) -> "EpochDataset":
        """The same rows with an epoch of their own, for evaluation."""
        other = copy.copy(self)
        other._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        return other

    def start_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def _complete(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        epoch = int(self._epoch)
        row = {"row_name": f"row {index}", **self._usable(row, index, epoch), "index": index, "epoch": epoch}
        return add_document(row, self.texts, self.seed)

    def _usable(self, row: dict[str, Any], index: int, epoch: int) -> dict[str, Any]:
        """The row as `read` makes it, or, if it is flawed, another."""
        if self.read is None:
            return row
        usable = self.read(row, index)
        if usable is not None:
            return usable
        others = seeded_rng(self.seed, REPLACEMENTS, epoch, index).integers(len(self), size=MAX_REPLACEMENTS)
        for other in map(int, others):
            usable = self.read(self.dataset[other], other)
            if usable is not None:
                return {"row_name": f"row {other}", **usable}
        raise DataError(f"row {index} and {MAX_REPLACEMENTS} rows drawn in its place are flawed; mend the data.")


def add_document(row: dict[str, Any], texts: datasets.Column | list[str] | None, seed: int) -> dict[str, Any]:
    """The row with the `document` that its epoch and index draw, if there are texts.

    Raises:
        ValueError: the document is empty.
    """
    if texts is None:
        return row
    number = int(seeded_rng(seed, DOCUMENTS, row["epoch"], row["index"]).integers(len(texts)))
    document = as_text(texts[number])
    if not isinstance(document, str) or not document.strip():
        raise DataError(f"document {number} of the replay is {document!r}. Filter such documents out.")
    return {**row, "document": document}


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table; strings as bytes, since `datasets` cannot read a batch with one that is not UTF-8."""
    columns = {name: _as_values(table.column(name)) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _as_values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_binary()).to_pylist()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
            return column.cast(pa.large_list(pa.large_binary())).to_pylist()
        if isinstance(kind.value_type, JSON):
            return [values and [_from_json(value) for value in values] for values in column.to_pylist()]
    if isinstance(kind, JSON):  # values of several types in a JSON file
        return [_from_json(value) for value in column.to_pylist()]
    return column.to_pylist()


def _from_json(value: str | None) -> Any:
    """Numbers stay the texts that they are in the file, and so does what `datasets` left as it was, such as 007."""
    try:
        return value and json.loads(value, parse_int=str, parse_float=str)
    except ValueError:
        return value


def load_split(
    spec: str, split: str, streaming: bool = False, texts: Sequence[str] = (), **kwargs
) -> datasets.Dataset | datasets.IterableDataset:
    """One split of the dataset that `spec` names.

    Args:
        spec: a folder that `save_to_disk` wrote, a folder of files or a name on the Hub that `load_dataset` reads, or
            `"module:function"`: `function(split=split, **kwargs)` is called; the working directory is importable.
        split: the split's name.
        streaming: whether `load_dataset` streams; `save_to_disk` folders and functions give ordinary datasets.
        texts: columns that a CSV file is not to convert: 1984, true, None and N/A stay text.
        **kwargs: arguments of `load_dataset` or of the function.

    Raises:
        ValueError: there is no such dataset, function or split.
    """
    spec = os.path.expanduser(spec)
    is_folder = Path(spec).is_dir()
    if FUNCTION.fullmatch(spec) and not Path(spec).exists():
        return import_function(spec, "dataset")(split=split, **kwargs)
    if is_folder and (Path(spec, "dataset_dict.json").exists() or Path(spec, "state.json").exists()):
        return _split_of_saved(spec, split)
    if "://" in spec:
        raise ValueError(f"dataset '{spec}' is a URL: {_instead_of_url(spec)}.")
    if is_missing_path(spec):
        raise ValueError(f"dataset '{spec}' does not exist: give a folder, or a name on the Hub.")
    if is_folder and "data_files" not in kwargs:  # a bare `text` or `csv` is a builder of `load_dataset`
        spec = os.path.abspath(spec)
    try:
        return load_files(spec, split, streaming, texts, **kwargs)
    except (OSError, ValueError, TarError, DatasetsError) as error:  # Not found, no connection: an OSError
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        where = "from disk" if Path(spec).exists() else "from the Hub, and there is no such folder here"
        raise ValueError(f"dataset '{spec}', split '{split}', cannot be loaded {where}: {reason}") from error


def _instead_of_url(spec: str) -> str:
    repository = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", spec)
    if repository:
        return f"write dataset: {repository[1]}"
    return f"name the files' format and their URL, such as dataset: parquet, dataset_kwargs: {{data_files: '{spec}'}}"


def is_missing_path(name: str) -> bool:
    """Whether this is a path, not a name on the Hub, and nothing is there."""
    is_path = name.startswith((".", "~")) or not HUB_NAME.fullmatch(name)
    return is_path and not Path(name).exists()


def check_columns(names: Sequence[str], spec: str, **columns: str) -> None:
    """Raise a ValueError if a column that an argument names (`caption_column="caption"`) is not among `names`."""
    for argument, column in columns.items():
        if column not in names:
            dataset = f"dataset '{spec}'" if spec else "the dataset"
            found = ", ".join(names)
            raise DataError(
                f"{argument}: {dataset} has no column '{column}'; it has {found}. Set {argument} to its name."
            )


def import_function(spec: str, what: str) -> Callable:
    """The function that `"module:function"` names; the working directory is importable.

    Raises:
        ValueError: there is none.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return pkgutil.resolve_name(spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} '{spec}' should name an importable function as 'module:function': {error}"
        ) from error


def _split_of_saved(folder: str, split: str) -> datasets.Dataset:
    saved = datasets.load_from_disk(folder)
    if isinstance(saved, datasets.Dataset):  # one split was saved, whose name the folder may not tell
        saved = {str(saved.split or "train"): saved}
    if split not in saved:
        raise ValueError(f"dataset '{folder}' has no split '{split}'; it has {', '.join(saved)}.")
    return saved[split]
