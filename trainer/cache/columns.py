"""A column that is costly to compute, kept on disk: as shards, memory-mapped, each written whole or not at all.

A column's folder is named by a key of all that decides its values, a shard's file by its rows. What is missing is
computed, what is there is read: killed in the middle, the next run goes on with the next shard.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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

SHARD_ROWS = 2048  # at most so much is computed twice; at ViT-L/14, all tokens: 0.8 GB
BATCH_SIZE = 64  # rows that are computed at once
logger = logging.getLogger(__name__)


@dataclass
class CachedColumn:
    """One column, or several that are computed together.

    Args:
        name: what it is called on disk and in messages.
        key: of the data, and of all else that decides what is computed: see `fingerprint`.
        features: the columns' types.
        rows: how many rows there are.
        row_bytes: how much a row takes on disk, on average; 0 is not worth an announcement.
        compute: given ranges of rows, yields the columns' values of each range in turn.
        cache_dir: the folder of the cache; see `cache_folder`.
        unit: what a row is, for the progress bar.
        remedy: what to do when the disk is too small, beside another `cache_dir`.
    """

    name: str
    key: str
    features: Features
    rows: int
    row_bytes: float
    compute: Callable[[list[range]], Iterable[dict[str, Any]]]
    cache_dir: str | None = None
    unit: str = "rows"
    remedy: str = ""

    @property
    def folder(self) -> Path:
        return cache_folder(self.cache_dir) / f"{self.name}-{self.key}"

    def shards(self) -> dict[range, Path]:
        """The file of each range of rows."""
        rows = [range(start, min(start + SHARD_ROWS, self.rows)) for start in range(0, self.rows, SHARD_ROWS)]
        return {shard: self.folder / f"{shard.start:010d}-{shard.stop:010d}.arrow" for shard in rows}

    def missing(self) -> dict[range, Path]:
        return {shard: file for shard, file in self.shards().items() if not file.is_file()}

    def missing_bytes(self) -> int:
        return round(self.row_bytes * sum(map(len, self.missing())))

    def fill(self) -> None:
        """Compute what is missing; a second process that wants the same waits, and then finds it."""
        if not self.missing():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            for leftover in self.folder.glob("tmp*"):  # of a run that was killed while it wrote a shard
                leftover.unlink()
            self._fill(self.missing())

    def _fill(self, missing: dict[range, Path]) -> None:
        done = self.rows - sum(map(len, missing))
        values = iter(self.compute([rows for shard in missing for rows in _batches(shard)]))
        with (
            tqdm(desc=self.name, total=self.rows, initial=done, unit=f" {self.unit}") as bar,
            without_bars_of_datasets(),
        ):

            def take_next(rows: dict[str, list[int]]) -> dict[str, Any]:
                computed = next(values)
                bar.update(len(rows["row"]))
                return computed

            for shard, file in missing.items():
                Dataset.from_dict({"row": shard}).map(
                    take_next,
                    batched=True,
                    batch_size=BATCH_SIZE,
                    writer_batch_size=BATCH_SIZE,
                    remove_columns=["row"],
                    features=self.features,
                    cache_file_name=str(file),  # moved there when it is complete
                    new_fingerprint=f"{self.key}-{shard.start}",
                )

    def open(self) -> Dataset:
        """The whole column, memory-mapped.

        Raises:
            ValueError: a file is damaged.
        """
        if not self.rows:
            return Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        return concatenate_datasets([_open(file, len(shard)) for shard, file in self.shards().items()])


def fill(columns: list[CachedColumn]) -> None:
    """Compute what is missing of the columns, after saying how much that is and where it goes.

    Raises:
        ValueError: the disk is too small for what is missing; nothing was computed then.
    """
    if said := check_room(columns):
        logger.warning(said)
    for column in columns:
        column.fill()


def check_room(columns: list[CachedColumn]) -> str:
    """One line on what is missing of the columns, all of one `cache_dir`; empty if nothing is.

    Raises:
        ValueError: the disk is too small for it.
    """
    columns = [column for column in columns if column.missing_bytes()]
    if not columns:
        return ""
    folder, needed = cache_folder(columns[0].cache_dir), sum(column.missing_bytes() for column in columns)
    free = shutil.disk_usage(folder).free
    parts = "; ".join(map(_describe, columns))
    if needed > free:
        remedies = dict.fromkeys(["set cache_dir to a larger disk", *(c.remedy for c in columns if c.remedy)])
        raise ValueError(
            f"cache_dir: the feature cache needs {as_size(needed)} ({needed:,} bytes) in {folder}, where "
            f"{as_size(free)} ({free:,} bytes) are free: {parts}. Free some, {', or '.join(remedies)}."
        )
    return f"Feature cache: {parts}. {as_size(needed)} go to {folder}, where {as_size(free)} are free."


def _describe(column: CachedColumn) -> str:
    rows, size = sum(map(len, column.missing())), as_size(column.row_bytes)
    return f"{column.name}, {rows:,} {column.unit} × {size} = {as_size(column.missing_bytes())}"


def as_size(count: float) -> str:
    """Bytes, for a person: 1.5 kB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.{0 if unit == 'bytes' else 1}f} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"


def in_workers(dataset: torch.utils.data.Dataset, batches: list[range], workers: int) -> Iterator[Any]:
    """What `dataset.__getitems__` makes of each batch of rows, in order, made ahead of time by worker processes."""
    return iter(DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=_as_it_is))


def fingerprint(dataset: Dataset, parameters: Iterable[tuple[str, Tensor]], *settings: str) -> str:
    """A key of the data, of the weights' names and values, and of the settings."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (dataset._fingerprint, *settings):  # the only name under which `datasets` offers its fingerprint
        digest.update(part.encode() + b"\0")
    for name, parameter in parameters:
        digest.update(name.encode() + str(parameter.dtype).encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cache_folder(cache_dir: str | None) -> Path:
    """`cache_dir`, or a place in the cache of `datasets`; it is made."""
    folder = Path(cache_dir) if cache_dir else Path(datasets.config.HF_DATASETS_CACHE) / "vlkd"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _batches(rows: range) -> list[range]:
    return [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]


def _open(file: Path, rows: int) -> Dataset:
    try:
        shard = Dataset.from_file(str(file))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"cache_dir: {file} is damaged ({error}); delete it, and it is computed again.") from error
    if len(shard) != rows:
        raise ValueError(f"cache_dir: {file} has {len(shard)} rows, not {rows}; delete it, and it is computed again.")
    return shard


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def without_bars_of_datasets() -> Iterator[None]:
    """One bar for all shards is enough."""
    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
