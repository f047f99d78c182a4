"""Decode rows. Invalid ones are skipped, counted and listed in skipped.jsonl."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from trainer.data.rows import InvalidRowError, load_image, read_captions

FILE = "skipped.jsonl"
FEW = 10  # invalid rows that each reader of a stream allows, whatever their share


class RowDecoder:
    """Decodes a row for the collator: `image`, `caption` (a list of captions) and `row_name`.

    Called with a row and its number, which a column `row_number` overrides. Returns None for an invalid row, after
    adding it to `skipped`. Runs in the data loader's workers.

    Args:
        image_column, caption_column: names of the columns. Rows with cached image features have no image.
        skipped: records the invalid rows.
        min_side: see `load_image`.
    """

    def __init__(self, image_column: str, caption_column: str, skipped: "SkipLog", min_side: int | None = None):
        self.image_column = image_column
        self.caption_column = caption_column
        self.skipped = skipped
        self.min_side = min_side

    def __call__(self, row: dict[str, Any], index: int) -> dict[str, Any] | None:
        number, name = self.identify(row, index)
        try:
            row = {**self.decode(row, name), "row_name": name}
        except InvalidRowError as error:
            self.skipped.add(number, name, error)
            return None
        self.skipped.valid += 1
        return row

    def identify(self, row: dict[str, Any], index: int) -> tuple[int, str]:
        """The row's number, and its name in messages: the image file if known."""
        number, image = int(row.get("row_number", index)), row.get(self.image_column)
        path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
        return number, path or row.get("row_name", f"row {number}")

    def decode(self, row: dict[str, Any], name: str) -> dict[str, Any]:
        """Decode the captions into `caption` and the image into `image`, if the row has these columns.

        Raises:
            InvalidRowError: the image or a caption cannot be read.
        """
        row = dict(row)
        if self.caption_column in row:
            row["caption"] = read_captions(row.pop(self.caption_column), name, self.caption_column)
        if self.image_column in row:
            row["image"] = load_image(row.pop(self.image_column), name, self.image_column, self.min_side)
        return row


class SkipLog:
    """Writes each invalid row of a split to `skipped.jsonl` once, and raises an error when there are too many.

    All processes and workers append whole lines to the same file and read what the others wrote.

    Args:
        folder: folder of the file.
        split: name of the split.
        rows: number of rows of the split, or None for a stream. In a stream, each reader compares the invalid rows
            with the rows that it has read, and allows three standard deviations for chance, and `FEW` rows at least.
        max_fraction: `add` raises if a larger share of the rows is invalid.
        on_error: "raise" raises at the first invalid row.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str,
        rows: int | None,
        max_fraction: float = 0.01,
        on_error: Literal["skip", "raise"] = "skip",
    ):
        self.file = Path(folder, FILE)
        self.split = split
        self.rows = rows
        self.max_fraction = max_fraction
        self.on_error = on_error
        self.valid = 0  # valid rows that this reader has read
        self.invalid = 0  # rows that it has skipped; a row counts again in each epoch
        self._numbers: set[int] = set()  # rows in the file
        self._end = 0  # how far the file has been read

    def add(self, number: int, name: str, error: InvalidRowError) -> None:
        """Record that row `number` is invalid.

        Raises:
            InvalidRowError: too many rows are invalid, or `on_error` is "raise".
        """
        if self.on_error == "raise":
            raise InvalidRowError(f"{error} Or set on_error: skip to skip invalid rows.", error.reason) from error
        self.invalid += 1
        self._read_others()
        if number not in self._numbers:
            self._numbers.add(number)
            line = {"split": self.split, "row": number, "name": name, "reason": error.reason, "message": str(error)}
            self._append(json.dumps(line) + "\n")
        if self.rows is None:
            seen, invalid = self.valid + self.invalid, self.invalid
            limit = max(FEW, self.max_fraction * seen + 3 * math.sqrt(self.max_fraction * seen))
            limit = limit if self.max_fraction else 0
        else:
            seen, invalid = self.rows, len(self._numbers)
            limit = self.max_fraction * seen
        if invalid > limit:
            raise InvalidRowError(
                f"{invalid} of {seen} rows of split '{self.split}' are invalid, more than max_skipped_fraction: "
                f"{self.max_fraction:g}. {self.file} lists them; fix them or raise max_skipped_fraction. Last: {error}"
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
            os.write(handle, line.encode())  # one call, so that the lines of two workers cannot mix
        finally:
            os.close(handle)


def count_skipped(file: str | os.PathLike) -> Counter[str]:
    """The number of skipped rows by reason; each row counts once."""
    rows = _parse(Path(file).read_bytes()) if Path(file).is_file() else []
    return Counter({(row["split"], row["row"]): row["reason"] for row in rows}.values())


def _parse(lines: bytes) -> list[dict[str, Any]]:
    """The rows of whole lines. A crash may have left an incomplete line, which is ignored."""
    rows = []
    for line in lines.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
