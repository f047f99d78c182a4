"""Read rows; those that cannot be trained on are skipped, counted, and listed in skipped.jsonl."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from trainer.data.rows import InvalidRowError, load_image, read_captions, row_name

FILE = "skipped.jsonl"


class RowDecoder:
    """Turns what a dataset holds into a row for the collator: `image`, decoded, `caption`, a list, and `row_name`.

    Called with a row and its number, which a column `row_number` overrides. Returns None for a flawed row, after it
    was added to `skipped`. It runs in the workers of the data loader.

    Args:
        image_column, caption_column: their names. No image is read of rows without one, whose features are cached.
        skipped: what becomes of flawed rows.
        min_side: see `read_image`.
    """

    def __init__(self, image_column: str, caption_column: str, skipped: "SkipLog", min_side: int | None = None):
        self.image_column = image_column
        self.caption_column = caption_column
        self.skipped = skipped
        self.min_side = min_side

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any] | None:
        number = int(row.get("row_number", index))
        name = row_name(row.get(self.image_column), row.get("row_name", f"row {number}"))
        try:
            row = {**self.read(row, name), "row_name": name}
        except InvalidRowError as flaw:
            self.skipped.add(number, name, flaw)
            return None
        self.skipped.usable += 1
        return row

    def read(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """The row with its captions as `caption` and its image as `image`; a column that it lacks is not read.

        Raises:
            InvalidRowError: it is flawed.
        """
        row = dict(row)
        if self.caption_column in row:
            row["caption"] = read_captions(row.pop(self.caption_column), name, self.caption_column)
        if self.image_column in row:
            row["image"] = load_image(row.pop(self.image_column), name, self.image_column, self.min_side)
        return row


class SkipLog:
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
        InvalidRowError: on `add`.
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

    def add(self, number: int, name: str, flaw: InvalidRowError) -> None:
        """Take note that row `number` is flawed."""
        if self.on_error == "raise":
            raise InvalidRowError(f"{flaw} Or set on_error: skip, to pass such rows over.", flaw.reason) from flaw
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
            raise InvalidRowError(
                f"{flawed} of {seen} rows of split '{self.split}' are invalid, more than max_skipped_fraction: "
                f"{self.max_share:g}. {self.file} lists them; fix them or raise max_skipped_fraction. The last: {flaw}"
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
