"""Reads images from files, URLs, arrays and tensors, and converts them to upright, opaque, 8-bit RGB."""

import base64
import binascii
import os
import time
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

try:
    from pillow_heif import register_heif_opener
except ImportError:  # optional: without it, Pillow does not read HEIC files
    pass
else:
    register_heif_opener()

IMAGE_EXTENSIONS = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
TIMEOUT = 20.0  # seconds for a URL
MAX_DOWNLOAD = 64 * 2**20  # bytes of a URL
MAX_ASPECT = 100  # limits memory: the image processor scales the shorter side to about 224
ROUNDING = 1e-3  # float values may be out of range by this fraction of it


def read_image(image: Any, name: str = "image", timeout: float = TIMEOUT, min_side: int | None = None) -> Image.Image:
    """
    Returns an image, or the first frame of an animation, as upright, opaque, 8-bit RGB.

    Args:
        image: PIL image, path, http(s) URL, base64 string or data URI, a file's bytes, array (height, width[, 1, 3
            or 4]) or tensor ([1, 3 or 4, ]height, width).
        name: Name of the image in error messages.
        timeout: Seconds for a URL.
        min_side: Decodes a JPEG file faster, at 1/2, 1/4 or 1/8 of its size, if no side gets shorter than this.

    Raises:
        ValueError: The image cannot be read, has an unsupported type, or exceeds twice `PIL.Image.MAX_IMAGE_PIXELS`,
            `MAX_DOWNLOAD` or `MAX_ASPECT`.
    """
    try:
        if isinstance(image, (str, bytes, os.PathLike)):
            with _open(image, timeout) as opened:
                if min_side:
                    opened.draft(None, (min_side, min_side))
                return to_rgb(opened)
        return to_rgb(image if isinstance(image, Image.Image) else _from_array(image))
    except Exception as error:  # Pillow raises many kinds for broken files
        source = image if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", "")
        source = str(source or type(image).__name__)
        source = source if len(source) <= 200 else f"{source[:60]}… of {len(source)} characters"
        raise ValueError(
            f"{name} ({source}) cannot be read as an image: {error}. Give a PIL image, a path, a URL, a base64 "
            "string, an array or a tensor."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Applies EXIF rotation, scales 16-bit and float images to 8 bits, and puts transparency on white.

    Returns the image itself, not a copy, if there is nothing to change.

    Raises:
        ValueError: A side is 0 or more than `MAX_ASPECT` times the other, or pixel values are out of range.
        OSError: The file is truncated.
    """
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:  # an empty image too
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; a side may be {MAX_ASPECT} times as long as the other"
        )
    image.load()
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


def download(url: str, timeout: float = TIMEOUT) -> bytes:
    """
    Downloads an http(s) URL.

    Raises:
        TimeoutError: The server is silent for `timeout` seconds, or sends its answer for longer than that.
        ValueError: The file is larger than `MAX_DOWNLOAD`.
        OSError: The server cannot be reached, or returns an error.
    """
    end, data = time.monotonic() + timeout, bytearray()
    with urlopen(Request(url, headers={"User-Agent": "vlkd"}), timeout=timeout) as response:
        announced = int(response.headers.get("Content-Length") or 0)
        while max(announced, len(data)) <= MAX_DOWNLOAD:
            if time.monotonic() > end:
                raise TimeoutError(f"the server did not respond completely within {timeout:g} seconds")
            chunk = response.read1(2**16)
            if not chunk:
                return bytes(data)
            data += chunk
    raise ValueError(f"it is larger than {MAX_DOWNLOAD} bytes; load it yourself and give the PIL image")


def _open(source: str | bytes | os.PathLike, timeout: float) -> Image.Image:
    """Opens a path, URL, data URI, base64 string or the bytes of a file, without decoding pixels."""
    if isinstance(source, os.PathLike) and not os.path.isfile(source):
        raise FileNotFoundError("there is no such file")
    if isinstance(source, bytes):
        file, size = BytesIO(source), len(source)
    elif os.path.isfile(source):
        file, size = source, os.path.getsize(source)
    else:
        web = source[:8].lower().startswith(("http://", "https://"))
        data = download(source, timeout) if web else _decode_base64(source)
        file, size = BytesIO(data), len(data)
    if not size:
        raise ValueError("it is empty, 0 bytes")
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"its {size} bytes are not an image that Pillow can read") from error


def _decode_base64(source: str) -> bytes:
    """A data URI or a bare base64 string -> bytes."""
    head, comma, body = source.partition(",")
    try:
        return base64.b64decode(
            "".join((body if comma and head.startswith("data:") else source).split()), validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise ValueError("there is no such file, and it is neither an http(s) URL nor base64") from error


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; a broken EXIF block is ignored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds, even a SyntaxError
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _from_deep(image: Image.Image) -> Image.Image:
    """16 or 32 bits or floats (modes I;16, I, F) -> 8 bits (L)."""
    wide = image if image.mode in ("I", "F") else image.convert("I")
    dtype = torch.float32 if wide.mode == "F" else torch.int32
    values = torch.frombuffer(bytearray(wide.tobytes()), dtype=dtype).view(wide.height, wide.width)
    if image.mode.startswith("I;16"):
        key = image.info.get("transparency", -1)  # the gray value that means transparent becomes white
        values = values.masked_fill(values == key, 65535).to(torch.uint16)
    return Image.fromarray(_to_eight_bits(values).numpy())


def _from_array(array) -> Image.Image:
    """(height, width[, channels]) or (channels, height, width), with 1, 3 or 4 channels, -> PIL."""
    if not hasattr(array, "shape"):
        raise TypeError("its type is not supported")
    if not isinstance(array, torch.Tensor):
        array = array.copy()  # torch does not accept negative strides, as in `bgr[..., ::-1]`
    array = torch.as_tensor(array).detach().cpu()
    channels = (1, 3, 4)
    if array.dim() == 3 and array.shape[2] not in channels and array.shape[0] in channels:
        array = array.permute(1, 2, 0)  # (height, width, channels)
    if array.dim() not in (2, 3) or (array.dim() == 3 and array.shape[2] not in channels) or not array.numel():
        raise ValueError(
            f"its shape {tuple(array.shape)} is neither (height, width), (height, width, 1, 3 or 4) nor "
            "(1, 3 or 4, height, width)"
        )
    if array.dim() == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(_to_eight_bits(array).numpy())


def _to_eight_bits(values: torch.Tensor) -> torch.Tensor:
    """
    Scales pixels of any type to uint8.

    Floats range from 0 to 1 or 0 to 255; integers from 0 to 255, or to 65535 if a value or the dtype requires it.

    Raises:
        ValueError: Values out of range, or NaN.
    """
    if values.dtype == torch.uint8:
        return values
    kind, values = values.dtype, values.float()
    low, high = (value.item() for value in values.aminmax())
    if kind.is_floating_point or kind == torch.bool:
        top = 1 if high < 2 else 255  # 1.04 is an error: neither 0 to 1 nor a plausible 0 to 255
    else:
        top = 65535 if kind == torch.uint16 or high > 255 else 255
    if not (low >= -ROUNDING * top and high <= (1 + ROUNDING) * top):  # written so that NaN is an error too
        raise ValueError(
            f"its values range from {low:g} to {high:g}; give 0 to 255, floats from 0 to 1, or 16 bits from 0 to 65535"
        )
    return (values * (255 / top)).round().clamp(0, 255).to(torch.uint8)
