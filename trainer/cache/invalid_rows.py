"""Find invalid rows before the feature cache is computed."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from datasets import Dataset, Features, Value, concatenate_datasets

from trainer.cache.columns import CachedColumn, fingerprint, in_workers
from trainer.data.rows import InvalidRowError, as_rows
from trainer.data.skipped import RowDecoder


@dataclass
class InvalidRows:
    """The columns `reason` and `message`: why a row is invalid; empty for valid rows.

    Args:
        decoder: decodes the rows.
        columns: the columns to decode: captions, images or both.
        cache_dir: see `cache_folder`.
        workers: number of processes that decode.
    """

    decoder: RowDecoder
    columns: list[str]
    cache_dir: str | None = None
    workers: int = 0

    def column(self, dataset: Dataset) -> CachedColumn:
        finder = _ErrorFinder(dataset.with_format("arrow").select_columns([*self.columns, "row_number"]), self.decoder)
        return CachedColumn(
            name="invalid_rows",
            key=fingerprint(dataset, (), *self.columns, str(self.decoder.min_side)),
            features=Features({"reason": Value("string"), "message": Value("string")}),
            rows=len(dataset),
            row_bytes=0,
            compute=lambda batches: in_workers(finder, batches, self.workers),
            cache_dir=self.cache_dir,
        )

    def drop_from(self, dataset: Dataset) -> Dataset:
        """Remove the invalid rows, and record them in `decoder.skipped` by `row_number`, which is added if missing.

        Raises:
            InvalidRowError: too many rows are invalid.
        """
        if "row_number" not in dataset.column_names:
            dataset = dataset.add_column("row_number", range(len(dataset)))
        column = self.column(dataset)
        column.compute_missing()
        found, undecoded = column.open(), dataset.with_format("arrow")
        invalid = [index for index, reason in enumerate(found["reason"]) if reason]
        for index in invalid:
            (row,) = as_rows(undecoded[index : index + 1])
            error = InvalidRowError(found[index]["message"], found[index]["reason"])
            self.decoder.skipped.add(*self.decoder.identify(row, index), error)
        # Concatenate the ranges between invalid rows: a list of row numbers would make every later column copy them.
        ranges = [range(before + 1, after) for before, after in pairwise([-1, *invalid, len(dataset)])]
        return concatenate_datasets([dataset.select(rows) for rows in ranges if rows] or [dataset.select([])])


class _ErrorFinder(torch.utils.data.Dataset):
    """Decodes rows, in workers."""

    def __init__(self, dataset: Dataset, decoder: RowDecoder):
        self.dataset = dataset
        self.decoder = decoder

    def __getitems__(self, numbers: range) -> dict[str, list[str]]:
        rows = zip(as_rows(self.dataset[numbers]), numbers, strict=True)
        errors = [self._find_error(row, number) for row, number in rows]
        return {"reason": [error.reason for error in errors], "message": [str(error) for error in errors]}

    def _find_error(self, row: dict[str, Any], number: int) -> InvalidRowError:
        """The error of a row; without reason and message if the row is valid."""
        _, name = self.decoder.identify(row, number)
        try:
            self.decoder.decode(row, name)
        except InvalidRowError as error:
            return error
        return InvalidRowError("")
