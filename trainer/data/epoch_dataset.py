"""A map-style dataset whose rows know their epoch."""

from collections.abc import Callable
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from trainer.data.infilling import REPLACEMENTS, seeded_rng
from trainer.data.rows import DataError

MAX_REPLACEMENTS = 100


class EpochDataset(Dataset):
    """Rows with their `index`, `epoch` and, for messages, `row_name`.

    Captions and corruptions are drawn from (seed, epoch, index), so they do not depend on the number of processes. The
    epoch is in shared memory, so that persistent workers see it change. `start_epoch` is not named `set_epoch`, which
    accelerate calls only in some setups, and also on evaluation data.

    An invalid row is replaced by another row, also drawn from (seed, epoch, index), so that every batch keeps its
    size. It keeps the `index` of the invalid row, which seeds the draws; `row_name` is the replacement's.

    Args:
        dataset: the rows.
        seed: seed of the replacements.
        decode: called with a row and its number; returns the row to use, or None if it is invalid. If unset, rows are
            used unchanged.

    Raises:
        ValueError: the dataset is a stream; while reading: no valid replacement was found.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        seed: int = 0,
        decode: Callable[[dict[str, Any], int], dict[str, Any] | None] | None = None,
    ):
        if isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                "the dataset is a stream; use trainer.data.streaming.StreamingDataset, or streaming=False."
            )
        self.dataset = dataset
        self.seed = seed
        self.decode = decode
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._complete(self.dataset[index], index)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Read a whole batch at once, which is much faster in `datasets` than row by row."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        rows = self.dataset.__getitems__(indices)
        return [self._complete(row, index) for row, index in zip(rows, indices, strict=True)]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def start_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def _complete(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        epoch, number = self.epoch, index
        if self.decode is not None:
            row = self.decode(row, index)
            if row is None:
                row, number = self._replacement(index, epoch)
        return {"row_name": f"row {number}", **row, "index": index, "epoch": epoch}

    def _replacement(self, index: int, epoch: int) -> tuple[dict[str, Any], int]:
        numbers = seeded_rng(self.seed, REPLACEMENTS, epoch, index).integers(len(self), size=MAX_REPLACEMENTS)
        for number in map(int, numbers):
            row = self.decode(self.dataset[number], number)
            if row is not None:
                return row, number
        raise DataError(f"row {index} and {MAX_REPLACEMENTS} replacements are invalid; fix the data.")
