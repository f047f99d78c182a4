"""Rows by number, which know their epoch."""

import copy
from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from trainer.data.infilling import seeded_rng
from trainer.data.rows import DataError

DOCUMENTS, REPLACEMENTS = 1, 5  # random streams; `seeded_rng` has one for each purpose, captions are stream 0
MAX_REPLACEMENTS = 100  # rows that are tried in the place of a flawed one


class EpochDataset(Dataset):
    """Rows that know their place: each carries `index` and `epoch`.

    Captions and corruptions are drawn from (seed, epoch, index), hence alike in every process layout. The epoch lives
    in shared memory, so that persistent workers see it change. It is deliberately not called `set_epoch`: accelerate
    calls a method of that name on one process and not on several, and on evaluation data too.

    A row that `read` finds flawed is replaced by another one, drawn from (seed, epoch, index) too, so that every batch
    keeps its size. `index` stays that of the flawed row, since it seeds the draws; `row_name`, for messages, is the
    replacement's.

    Args:
        dataset: rows by number.
        seed: of that draw.
        read: makes a row of what the dataset holds, or None of a flawed one; it is given the row and its number. None
            leaves rows as they are.

    Raises:
        ValueError: the dataset is a streaming one; while reading: one row after the other is flawed.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        seed: int = 0,
        read: Callable[[dict[str, Any], int], dict[str, Any] | None] | None = None,
    ):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "the dataset is a streaming one; give it to `trainer.data.streaming.StreamingDataset`, or load it "
                "with streaming=False."
            )
        self.dataset = dataset
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
        return {"row_name": f"row {index}", **self._usable(row, index, epoch), "index": index, "epoch": epoch}

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
