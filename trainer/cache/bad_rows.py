"""Find the rows that cannot be trained on before anything is cached."""

from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset, Features, Value, concatenate_datasets

from trainer.cache.columns import CachedColumn, fingerprint, in_workers
from trainer.data.rows import InvalidRowError, as_rows, row_name
from trainer.data.skipped import RowDecoder


def drop_invalid_rows(
    dataset: Dataset,
    read: RowDecoder,
    columns: list[str],
    cache_dir: str | None = None,
    first: int = 0,
    workers: int = 0,
) -> Dataset:
    """The dataset without its flawed rows, which are noted; its column `row_number` tells what the others' number was.

    What is found is kept on disk, beside the feature cache.

    Args:
        read: how rows are read, and where flaws are noted.
        columns: what to look at, captions or images or both.
        cache_dir: the feature cache's.
        first: the number of the first row.
        workers: processes that read rows.
    """
    column = invalid_rows_column(dataset, read, columns, cache_dir, first, workers)
    column.fill()
    found = column.open()
    flawed = [index for index, reason in enumerate(found["reason"]) if reason]
    images = dataset.select_columns([read.image_column])
    for index in flawed:
        flaw = InvalidRowError(found[index]["message"], found[index]["reason"])
        name = row_name(images[index][read.image_column], f"row {first + index}")
        read.skipped.add(first + index, name, flaw)
    numbered = dataset.add_column("row_number", range(first, first + len(dataset)))
    # Joined are the stretches between flawed rows: a list of the other rows' numbers would have every later
    # column copy the whole dataset.
    edges = [-1, *flawed, len(dataset)]
    stretches = [range(start + 1, stop) for start, stop in pairwise(edges) if start + 1 < stop]
    return concatenate_datasets([numbered.select(rows) for rows in stretches]) if stretches else numbered.select([])


def invalid_rows_column(
    dataset: Dataset, read: RowDecoder, columns: list[str], cache_dir: str | None, first: int, workers: int
) -> CachedColumn:
    """The `reason` and `message` of each invalid row, empty for valid rows; arguments as in `drop_invalid_rows`."""
    finder = _InvalidRowFinder(dataset.with_format("arrow").select_columns(columns), read, first)
    return CachedColumn(
        name="flaws",
        key=fingerprint(dataset, (), *columns, str(read.min_side), str(first)),
        features=Features({"reason": Value("string"), "message": Value("string")}),
        rows=len(dataset),
        row_bytes=0,
        compute=lambda batches: in_workers(finder, batches, workers),
        cache_dir=cache_dir,
        unit="rows",
    )


class _InvalidRowFinder(torch.utils.data.Dataset):
    """Reads rows, in workers."""

    def __init__(self, dataset: Dataset, read: RowDecoder, first: int):
        self.dataset = dataset
        self.read = read
        self.first = first

    def __getitems__(self, numbers: range) -> dict[str, list[str]]:
        rows = zip(as_rows(self.dataset[numbers]), numbers, strict=True)
        flaws = [_find_error(self.read, row, f"row {self.first + number}") for row, number in rows]
        return {"reason": [flaw.reason for flaw in flaws], "message": [str(flaw) for flaw in flaws]}


def _find_error(read: RowDecoder, row: dict[str, Any], name: str) -> InvalidRowError:
    """The row's flaw; one without reason and message if it has none."""
    try:
        read.read(row, name)
    except InvalidRowError as flaw:
        return flaw
    return InvalidRowError("")
