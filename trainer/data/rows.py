"""One row of a dataset: an image and captions that can be read, or the reason why not."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from transformers import ProcessorMixin

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data import paths  # noqa: F401 - registers the reader of HEIC files
from trainer.data.metadata import as_text

JSON = getattr(pa, "JsonType", ())  # since pyarrow 19
ENLARGEMENT = 3  # a JPEG is decoded at no less than this many times the size that the processor makes of it
REPLACED = "\ufffd"  # what stands in a text for bytes that are not UTF-8


class DataError(ValueError):
    """What is wrong with the data: one line, also if it comes out of a worker, whose traceback is then the message."""

    def __init__(self, message: str):
        from_worker = message.startswith("Caught ")
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip() if from_worker else message)


class InvalidRowError(DataError):
    """Why a row cannot be trained on.

    Args:
        message: names the row and the remedy.
        reason: the kind of flaw, as it is counted.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def row_name(image: Any, otherwise: str) -> str:
    """A name by which people can find the row: its image's file, if known."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str) else None
    return path or otherwise


def read_captions(captions: Any, name: str, column: str) -> list[str]:
    """The captions of one row as a list of texts.

    Args:
        captions: a text, as str or bytes, a number or truth value, which is read as text, or a list of them.

    Raises:
        InvalidRowError: there is none, or one is no text, empty, or not UTF-8.
    """
    texts = captions if isinstance(captions, (list, tuple)) else [captions]
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else as_text(text) for text in texts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        shown = repr(captions)
        raise InvalidRowError(
            f"{name}: column '{column}' holds {shown if len(shown) < 100 else shown[:100] + '…'}; every caption must "
            "be a text that is not empty. Write one, or filter the row out.",
            "no caption",
        )
    if any(REPLACED in text for text in texts):
        raise InvalidRowError(f"{name}: a text in column '{column}' is not UTF-8. Write it anew.", "not UTF-8")
    return texts


def load_image(image: Any, name: str, column: str, min_side: int | None = None) -> Image.Image:
    """An upright RGB image, as `read_image` makes it.

    Args:
        image: a PIL image, the path, the URL or the bytes of a file, or what `datasets` holds of one: {path, bytes}.

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
            f"{name}: column '{column}' holds no image that can be read: {error.__cause__ or error}. Mend or delete "
            "it.",
            _reason(image, error),
        ) from error
    if picture.size == (1, 1):
        raise InvalidRowError(f"{name}: the image is a single pixel. Delete the row.", "one pixel")
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


def draft_side(processor: ProcessorMixin) -> int:
    """How short a JPEG's shorter side may become while it is decoded (see `read_image`).

    At three times the processor's own size, photographs differ from those decoded in full by less than JPEG itself
    changed them: by 0.4 of 255 on average, 4 at most.
    """
    return ENLARGEMENT * max(size for size in dict(processor.image_processor.size).values() if size)


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table; strings as bytes, since `datasets` cannot read a batch with one that is not UTF-8."""
    columns = {name: _as_values(table.column(name)) for name in table.column_names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _as_values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_binary()).to_pylist()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
            return column.cast(pa.large_list(pa.large_binary())).to_pylist()
        if isinstance(kind.value_type, JSON):
            return [values and [_from_json(value) for value in values] for values in column.to_pylist()]
    if isinstance(kind, JSON):  # values of several types in a JSON file
        return [_from_json(value) for value in column.to_pylist()]
    return column.to_pylist()


def _from_json(value: str | None) -> Any:
    """Numbers stay the texts that they are in the file, and so does what `datasets` left as it was, such as 007."""
    try:
        return value and json.loads(value, parse_int=str, parse_float=str)
    except ValueError:
        return value
