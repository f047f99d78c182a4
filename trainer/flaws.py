"""Rows that cannot be trained on: how they are found, counted, named, and when there are too many."""

import json
import logging
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, Features, Value, concatenate_datasets
from transformers import TrainerCallback

from trainer.column_cache import CachedColumn, fingerprint, in_workers
from trainer.data import as_rows
from trainer.rows import Flaw, load_image, read_captions, row_name

FILE = "skipped.jsonl"

logger = logging.getLogger(__name__)


class RowReader:
    """Turns what a dataset holds into a row for the collator: `image`, decoded, `caption`, a list, and `row_name`.

    Called with a row and its number, which a column `row_number` overrides. Returns None for a flawed row, after it
    was added to `skipped`. It runs in the workers of the data loader.

    Args:
        image_column, caption_column: their names. No image is read of rows without one, whose features are cached.
        skipped: what becomes of flawed rows.
        min_side: see `read_image`.
    """

    def __init__(self, image_column: str, caption_column: str, skipped: "SkippedRows", min_side: int | None = None):
        self.image_column = image_column
        self.caption_column = caption_column
        self.skipped = skipped
        self.min_side = min_side

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any] | None:
        number = int(row.get("row_number", index))
        name = row_name(row.get(self.image_column), row.get("row_name", f"row {number}"))
        try:
            row = {**self.read(row, name), "row_name": name}
        except Flaw as flaw:
            self.skipped.add(number, name, flaw)
            return None
        self.skipped.usable += 1
        return row

    def read(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """The row with its captions as `caption` and its image as `image`; a column that it lacks is not read.

        Raises:
            Flaw: it is flawed.
        """
        row = dict(row)
        if self.caption_column in row:
            row["caption"] = read_captions(row.pop(self.caption_column), name, self.caption_column)
        if self.image_column in row:
            row["image"] = load_image(row.pop(self.image_column), name, self.image_column, self.min_side)
        return row


class SkippedRows:
    """The flawed rows of a split: each is written to `skipped.jsonl` once, and too many of them are an error.

    All processes and workers append to the one file, whole lines at a time, and read what the others wrote.

    Args:
        folder: where the file lies.
        split: its name.
        rows: how many it has; None for a stream. Of a stream, a reader allows for chance in the rows it has seen: it
            stops when the flawed are more than three standard deviations above the share.
        max_share: the share of flawed rows above which it stops.
        on_error: "raise" makes the first flaw an error.

    Raises:
        Flaw: on `add`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        rows: int | None,
        max_share: float = 0.01,
        on_error: Literal["skip", "raise"] = "skip",
    ):
        self.file = Path(folder, FILE)
        self.split = split
        self.rows = rows
        self.max_share = max_share
        self.on_error = on_error
        self.usable = 0  # rows that this reader has read
        self.flawed = 0  # and passed over, again in each epoch
        self._numbers: set[int] = set()  # of all rows written down
        self._end = 0  # of what was read of the file

    def add(self, number: int, name: str, flaw: Flaw) -> None:
        """Take note that row `number` is flawed."""
        if self.on_error == "raise":
            raise Flaw(f"{flaw} Or set on_error: skip, to pass such rows over.", flaw.reason) from flaw
        self.flawed += 1
        self._read_others()
        if number not in self._numbers:
            self._numbers.add(number)
            line = {"split": self.split, "row": number, "name": name, "reason": flaw.reason, "message": str(flaw)}
            self._append(json.dumps(line) + "\n")
        if self.rows is None:
            seen, flawed = self.usable + self.flawed, self.flawed
            limit = self.max_share * seen + 3 * math.sqrt(self.max_share * seen)
        else:
            seen, flawed = self.rows, len(self._numbers)
            limit = self.max_share * seen
        if flawed > limit:
            raise Flaw(
                f"{flawed} of {seen} rows of split '{self.split}' are flawed, a share above max_skipped: "
                f"{self.max_share:g}. {self.file} lists them; mend them or set max_skipped higher. The last: {flaw}"
            )

    def _read_others(self) -> None:
        if self.file.is_file():
            with self.file.open("rb") as file:
                file.seek(self._end)
                lines = file.read()
            whole = lines.rfind(b"\n") + 1
            self._end += whole
            self._numbers |= {row["row"] for row in _parse(lines[:whole]) if row["split"] == self.split}

    def _append(self, line: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())  # in one piece, so that the lines of two workers cannot mix
        finally:
            os.close(handle)


def drop_flawed(
    dataset: Dataset,
    read: RowReader,
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
    column = flaws_column(dataset, read, columns, cache_dir, first, workers)
    column.fill()
    found = column.open()
    flawed = [index for index, reason in enumerate(found["reason"]) if reason]
    images = dataset.select_columns([read.image_column])
    for index in flawed:
        flaw = Flaw(found[index]["message"], found[index]["reason"])
        name = row_name(images[index][read.image_column], f"row {first + index}")
        read.skipped.add(first + index, name, flaw)
    numbered = dataset.add_column("row_number", range(first, first + len(dataset)))
    # Joined are the stretches between flawed rows: a list of the other rows' numbers would have every later
    # column copy the whole dataset.
    edges = [-1, *flawed, len(dataset)]
    stretches = [range(start + 1, stop) for start, stop in pairwise(edges) if start + 1 < stop]
    return concatenate_datasets([numbered.select(rows) for rows in stretches]) if stretches else numbered.select([])


def flaws_column(
    dataset: Dataset, read: RowReader, columns: list[str], cache_dir: str | None, first: int, workers: int
) -> CachedColumn:
    """Of each row the `reason` and `message` of its flaw, empty if it has none; arguments as of `drop_flawed`."""
    finder = _FlawFinder(dataset.with_format("arrow").select_columns(columns), read, first)
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


class _FlawFinder(torch.utils.data.Dataset):
    """Reads rows, in workers."""

    def __init__(self, dataset: Dataset, read: RowReader, first: int):
        self.dataset = dataset
        self.read = read
        self.first = first

    def __getitems__(self, numbers: range) -> dict[str, list[str]]:
        rows = zip(as_rows(self.dataset[numbers]), numbers, strict=True)
        flaws = [_find_flaw(self.read, row, f"row {self.first + number}") for row, number in rows]
        return {"reason": [flaw.reason for flaw in flaws], "message": [str(flaw) for flaw in flaws]}


def _find_flaw(read: RowReader, row: dict[str, Any], name: str) -> Flaw:
    """The row's flaw; one without reason and message if it has none."""
    try:
        read.read(row, name)
    except Flaw as flaw:
        return flaw
    return Flaw("")


class ReportSkipped(TrainerCallback):
    """Says at the end of training, in one line, what was skipped."""

    def __init__(self, folder: str | os.PathLike):
        self.file = Path(folder, FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = count_skipped(self.file)
        if counts and state.is_world_process_zero:
            counted = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted)
            logger.warning(f"{counts.total():,} flawed row(s) were skipped ({reasons}); {self.file} lists them.")


def count_skipped(file: str | os.PathLike) -> Counter[str]:
    """How many rows were skipped for each reason; each counts once."""
    rows = _parse(Path(file).read_bytes()) if Path(file).is_file() else []
    return Counter({(row["split"], row["row"]): row["reason"] for row in rows}.values())


def _parse(lines: bytes) -> list[dict[str, Any]]:
    """The rows of whole lines; a machine that went down may have left one that is cut off."""
    rows = []
    for line in lines.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
