"""Columns that are costly to compute, stored on disk in memory-mapped shards that are written atomically.

The name of a column's folder contains a hash of everything that its values depend on. Only missing shards are
computed, so an interrupted run continues with the next shard.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
from datasets import Dataset, Features, concatenate_datasets
from filelock import FileLock
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

SHARD_ROWS = 2048  # an interrupted run recomputes at most this many; 0.8 GB of all image tokens at ViT-L/14
BATCH_SIZE = 64  # rows that are computed at once
logger = logging.getLogger(__name__)


@dataclass
class CachedColumn:
    """One column, or several that are computed together.

    Args:
        name: name on disk and in messages.
        key: hash of everything that the values depend on; see `fingerprint`.
        features: the columns' types.
        rows: number of rows.
        row_bytes: mean size of a row on disk.
        compute: given ranges of rows, yields the columns' values for each range in turn.
        cache_dir: see `cache_folder`.
    """

    name: str
    key: str
    features: Features
    rows: int
    row_bytes: float
    compute: Callable[[list[range]], Iterable[dict[str, Any]]]
    cache_dir: str | None = None

    @property
    def folder(self) -> Path:
        return cache_folder(self.cache_dir) / f"{self.name}-{self.key}"

    def shards(self) -> dict[range, Path]:
        """The file of each range of rows."""
        ranges = _split(range(self.rows), SHARD_ROWS)
        return {rows: self.folder / f"{rows.start:010d}-{rows.stop:010d}.arrow" for rows in ranges}

    def missing(self) -> dict[range, Path]:
        return {rows: file for rows, file in self.shards().items() if not file.is_file()}

    def missing_bytes(self) -> int:
        return round(self.row_bytes * sum(map(len, self.missing())))

    def compute_missing(self) -> None:
        """Compute and write the missing shards. A second process that needs the same column waits for the first."""
        if not self.missing():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            missing = self.missing()
            values = iter(self.compute([batch for rows in missing for batch in _split(rows, BATCH_SIZE)]))
            done = self.rows - sum(map(len, missing))
            with tqdm(desc=self.name, total=self.rows, initial=done, unit=" rows") as bar:
                for rows, file in missing.items():
                    self._write(rows, file, values, bar)

    def _write(self, rows: range, file: Path, values: Iterator[dict[str, Any]], bar: tqdm) -> None:
        unfinished, schema = file.with_suffix(".tmp"), self.features.arrow_schema
        with pa.ipc.new_stream(unfinished, schema) as writer:
            for batch in _split(rows, BATCH_SIZE):
                writer.write_table(pa.table(next(values), schema=schema))
                bar.update(len(batch))
        unfinished.replace(file)

    def open(self) -> Dataset:
        """The whole column, memory-mapped.

        Raises:
            ValueError: a file is damaged.
        """
        if not self.rows:
            return Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        return concatenate_datasets([_open(file) for file in self.shards().values()])


def compute_missing(columns: list[CachedColumn]) -> None:
    """Log the size and folder of the missing shards of the columns, and compute them.

    Raises:
        ValueError: there is not enough disk space.
    """
    if message := check_disk_space(columns):
        logger.warning(message)
    for column in columns:
        column.compute_missing()


def check_disk_space(columns: list[CachedColumn]) -> str:
    """A one-line summary of the missing shards of the columns, which share a `cache_dir`; empty if none is missing.

    Raises:
        ValueError: there is not enough disk space.
    """
    needed = sum(column.missing_bytes() for column in columns)
    if not needed:
        return ""
    folder = cache_folder(columns[0].cache_dir)
    free = shutil.disk_usage(folder).free
    parts = [f"{column.name} {tqdm.format_sizeof(column.missing_bytes(), 'B')}" for column in columns]
    summary = (
        f"the feature cache needs {tqdm.format_sizeof(needed, 'B')} ({', '.join(parts)}) in {folder}, which has "
        f"{tqdm.format_sizeof(free, 'B')} free."
    )
    if needed > free:
        raise ValueError(
            f"cache_dir: {summary} Free some space, set cache_dir to a larger disk, or set cache_image_features to "
            "pooled or none."
        )
    return summary


def in_workers(dataset: torch.utils.data.Dataset, batches: list[range], workers: int) -> Iterator[Any]:
    """The results of `dataset.__getitems__` for each batch of rows, in order, prefetched by worker processes."""
    return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=_identity))


def _identity(batch: Any) -> Any:
    return batch


def fingerprint(dataset: Dataset, parameters: Iterable[tuple[str, Tensor]], *settings: str) -> str:
    """A hash of the data, of the weights' names and values, and of the settings."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (dataset._fingerprint, *settings):  # not public, but stable
        digest.update(part.encode() + b"\0")
    for name, parameter in parameters:
        digest.update(name.encode() + str(parameter.dtype).encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_folder(cache_dir: str | None) -> Path:
    """Create and return `cache_dir`, by default a folder in the cache of `datasets`."""
    folder = Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "vlkd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _split(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _open(file: Path) -> Dataset:
    try:
        return Dataset.from_file(str(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"cache_dir: {file} is damaged ({error}); delete it to compute it again.") from error
