"""Read the image and captions of a row, or raise the reason why they cannot be read."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from datasets import IterableDataset
from datasets.packaged_modules.webdataset.webdataset import WebDataset
from PIL import Image, UnidentifiedImageError

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data.metadata import as_text

JSON = getattr(pa, "JsonType", ())  # since pyarrow 19
ROWS_AT_ONCE = 16  # rows read from a stream at a time
REPLACED = "\ufffd"  # the character that replaces bytes that are not UTF-8
# Without this, a caption in a tar file that is not UTF-8 would end the shard; now only its row is invalid.
WebDataset.DECODERS = {**WebDataset.DECODERS, "txt": lambda data: data.decode("utf-8", errors="replace")}


class DataError(ValueError):
    """A data error with a one-line message.

    `DataLoader` re-raises a worker's error with the traceback as its message; the traceback is stripped here.
    """

    def __init__(self, message: str):
        from_worker = message.startswith("Caught ")
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip() if from_worker else message)


class InvalidRowError(DataError):
    """A row that cannot be used for training; `reason` is the kind of error, for the summary of skipped rows."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def check_column(column: str, columns: Iterable[str], owner: str = "the dataset", option: str | None = None) -> None:
    """Raise a DataError if `owner` has no such column; `option` is the argument that names it, if any."""
    if column not in columns:
        remedy = f"Set {option} to its name." if option else f"Rename it: dataset.rename_column(..., '{column}')."
        prefix = f"{option}: " if option else ""
        raise DataError(f"{prefix}{owner} has no column '{column}'; it has {', '.join(columns)}. {remedy}")


def read_captions(captions: Any, name: str, column: str) -> list[str]:
    """The captions of one row: a text (str or bytes), number or truth value, or a list of them, as a list of texts.

    Raises:
        InvalidRowError: there is no caption, or one is empty, not a text, or not UTF-8.
    """
    texts = captions if isinstance(captions, (list, tuple)) else [captions]
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else as_text(text) for text in texts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        shown = repr(captions)
        raise InvalidRowError(
            f"{name}: column '{column}' holds {shown if len(shown) < 100 else shown[:100] + '…'}; every caption must "
            "be a non-empty text. Write one, or remove the row.",
            "no caption",
        )
    if any(REPLACED in text for text in texts):
        raise InvalidRowError(f"{name}: a text in column '{column}' is not UTF-8. Convert it to UTF-8.", "not UTF-8")
    return texts


def load_image(image: Any, name: str, column: str, min_side: int | None = None) -> Image.Image:
    """An upright RGB image, as `read_image` returns it.

    Args:
        image: a PIL image, a path, a URL, the bytes of a file, or a `{"path", "bytes"}` dictionary of `datasets`.
        name, column: names of the row and its column, for messages.
        min_side: a JPEG may be decoded at reduced size, down to this many pixels on its shorter side.

    Raises:
        InvalidRowError: there is no image, or it cannot be read.
    """
    try:
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else image["bytes"]
        if isinstance(image, str) and "://" not in image:
            image = Path(image)
        elif isinstance(image, str) and not image.startswith("http"):  # a file on the Hub
            with fsspec.open(image) as file:
                image = file.read()
        picture = read_image(image, min_side=min_side)
    except (ValueError, OSError) as error:
        raise InvalidRowError(
            f"{name}: the image in column '{column}' cannot be read: {error.__cause__ or error}. Fix or remove it.",
            _reason(image, error),
        ) from error
    if picture.size == (1, 1):
        raise InvalidRowError(f"{name}: the image is a single pixel. Remove the row.", "one pixel")
    return picture


def _reason(image: Any, error: Exception | None) -> str:
    if image is None:
        return "no image"
    if image == b"" or (isinstance(image, Path) and image.is_file() and not image.stat().st_size):
        return "empty file"
    while error is not None:
        if isinstance(error, FileNotFoundError):
            return "missing file"
        if isinstance(error, (UnidentifiedImageError, TypeError)):
            return "not an image"
        if isinstance(error, Image.DecompressionBombError):
            return "too many pixels"
        if isinstance(error, ValueError) and "times as long" in str(error):
            return "too long"
        error = error.__cause__
    return "broken image"


def iterate_rows(stream: IterableDataset, first: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of a stream from row `first` on, not split over workers; strings as in `as_rows`."""
    row = first
    try:
        for table in stream.skip(row).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
            for values in as_rows(table):
                yield values
                row += 1
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # mixed types or a missing column
        for batch in stream.skip(row).iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table, with strings as bytes, since `datasets` cannot read strings that are not UTF-8."""
    columns = {name: _as_values(table.column(name)) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _as_values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    item = kind.value_type if is_list else kind
    if pa.types.is_string(item) or pa.types.is_large_string(item):
        return column.cast(pa.large_list(pa.large_binary()) if is_list else pa.large_binary()).to_pylist()
    if isinstance(item, JSON):  # a column of a JSON file with values of several types
        values = column.to_pylist()
        return [value and list(map(_from_json, value)) if is_list else _from_json(value) for value in values]
    return column.to_pylist()


def _from_json(value: str | None) -> Any:
    """A value of a mixed JSON column; numbers and values that `datasets` stores unquoted, such as 007, stay texts.

    A missing value is None in Arrow. The JSON `null` is the caption "null", which `datasets` also stores unquoted.
    """
    if value is None or value == "null":
        return value
    try:
        return json.loads(value, parse_int=str, parse_float=str)
    except ValueError:
        return value
