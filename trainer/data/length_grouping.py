"""An order of the rows in which the captions of a batch have similar lengths, so that little of a batch is padding."""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from trainer.data.epoch_dataset import EpochDataset
from trainer.data.infilling import CAPTIONS, ORDER, seeded_rng
from trainer.data.rows import DataError, as_rows

BATCHES = 50  # batches among which rows are sorted by length
ROWS_AT_ONCE = 1000


class LengthGroupedSampler(Sampler[int]):
    """Yields the rows' numbers in random order, but with captions of similar length in each batch.

    The rows are shuffled and divided into groups of `BATCHES` batches. Each group is sorted by the length of the
    caption that the collator draws in this epoch. Then its batches are shuffled, and the rows of each batch. The order
    depends on the seed and the epoch alone. transformers' sampler of the same name cannot know which caption is drawn.

    Args:
        dataset: the training data, which knows the epoch.
        batch_size: rows of an optimizer step, on all processes, so that these have similar work.
        seed: seed of the order.
        caption_seed: the collator's seed, which draws captions.

    Raises:
        DataError: the column of captions is missing.
    """

    def __init__(self, dataset: EpochDataset, batch_size: int, seed: int, caption_seed: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.caption_seed = caption_seed
        self.lengths = caption_lengths(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        lengths = self.drawn_lengths(self.dataset.epoch)
        rng = seeded_rng(self.seed, ORDER, self.dataset.epoch, 0)
        rows = rng.permutation(len(lengths))
        full = len(rows) - len(rows) % self.batch_size
        for group in np.split(rows[:full], range(BATCHES * self.batch_size, full, BATCHES * self.batch_size)):
            batches = group[lengths[group].argsort()].reshape(-1, self.batch_size)
            rng.shuffle(batches)
            yield from rng.permuted(batches, axis=1).ravel().tolist()
        yield from rows[full:].tolist()

    def drawn_lengths(self, epoch: int) -> np.ndarray:
        """(rows,): the length, in bytes, of the caption that is drawn from each row in this epoch."""
        drawn = np.array([lengths[0] for lengths in self.lengths])
        for row, lengths in enumerate(self.lengths):
            if len(lengths) > 1:
                drawn[row] = lengths[seeded_rng(self.caption_seed, CAPTIONS, epoch, row).integers(len(lengths))]
        return drawn


def caption_lengths(dataset: EpochDataset) -> list[tuple[int, ...]]:
    """Of each row, the lengths of its captions in bytes.

    Raises:
        DataError: the rows are not a `datasets.Dataset`, or the column of captions is missing.
    """
    if not isinstance(dataset.dataset, Dataset):
        raise DataError(
            "train_sampling_strategy 'group_by_length' reads the captions of a datasets.Dataset; the dataset is a "
            f"{type(dataset.dataset).__name__}. Set train_sampling_strategy to 'random'."
        )
    column = getattr(dataset.decode, "caption_column", "caption")
    if column not in (columns := dataset.dataset.column_names):
        raise DataError(
            f"train_sampling_strategy 'group_by_length' reads the captions of the column '{column}'; the dataset has "
            f"{', '.join(columns)}. Rename the column, or set train_sampling_strategy to 'random'."
        )
    tables = dataset.dataset.select_columns([column]).with_format("arrow").iter(ROWS_AT_ONCE)
    return [_lengths(row[column]) for table in tables for row in as_rows(table)]


def _lengths(captions: object) -> tuple[int, ...]:
    texts = captions if isinstance(captions, list) and captions else [captions]
    return tuple(len(text if isinstance(text, bytes) else str(text)) for text in texts)
