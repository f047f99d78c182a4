"""Where images come from, and how each becomes what a person sees: upright, opaque, 8 bits, RGB."""

import base64
import binascii
import os
import queue
import threading
import time
from io import BytesIO
from urllib.request import Request, urlopen

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

TIMEOUT = 20.0  # seconds for a URL, from the first question to the last byte
MAX_DOWNLOAD = 64 * 2**20  # bytes behind a URL
MAX_ASPECT = 100  # the image processor makes the shorter side 224 or so, and the longer one follows
ROUNDING = 1e-3  # share of the range by which float values may leave it


def read_image(image, name: str = "image", timeout: float = TIMEOUT, min_side: int | None = None) -> Image.Image:
    """
    An image as a person sees it: upright, opaque, 8 bits, RGB; of an animated one the first frame.

    Args:
        image: PIL image, path, http(s) URL, base64 string or data URI, a file's bytes, array (height, width[, 1, 3
            or 4]) or tensor ([1, 3 or 4, ]height, width).
        name: what the message calls it.
        timeout: seconds that a URL may take as a whole.
        min_side: a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as neither side gets
            shorter than this; None decodes all of it.

    Raises:
        ValueError: it cannot be read, or is none of these; the message names it. Pillow's limit of pixels
            (`PIL.Image.MAX_IMAGE_PIXELS`, an error at twice its value) holds, `MAX_DOWNLOAD` and `MAX_ASPECT` too.
    """
    try:
        if isinstance(image, (str, bytes, os.PathLike)):
            with _open(image, timeout) as opened:
                if min_side:
                    opened.draft(None, (min_side, min_side))
                return to_rgb(opened)
        return to_rgb(image if isinstance(image, Image.Image) else _from_array(image))
    except Exception as error:  # Pillow raises many kinds for broken files; a list must say which file it was
        source = image if isinstance(image, (str, os.PathLike)) else getattr(image, "filename", "")
        source = str(source or type(image).__name__)
        source = source if len(source) <= 200 else f"{source[:60]}… of {len(source)} characters"
        raise ValueError(
            f"{name} ({source}) cannot be read as an image: {error}. Give a PIL image, a path, a URL, a base64 "
            "string, an array or a tensor."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Turns by the EXIF tag, scales 16 bits and floats to 8 bits, lays transparency on white, makes every mode RGB.

    An RGB image in memory that needs none of this is returned itself, not a copy.

    Raises:
        ValueError: no pixels, or a side more than `MAX_ASPECT` times the other; values that are no image's.
        OSError: the file behind the image is truncated.
    """
    short, long = sorted(image.size)
    if long > MAX_ASPECT * short:  # an empty image too
        raise ValueError(f"it has {image.width} x {image.height} pixels, and may not be {MAX_ASPECT} times as long")
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
    What lies behind an http(s) URL.

    A thread waits for it, so that no silent name server and no server that sends a byte now and then can hold the
    caller for longer than `timeout` seconds.

    Raises:
        TimeoutError: it is not there in time.
        ValueError: it is larger than `MAX_DOWNLOAD`.
        OSError: the server cannot be reached, or refuses.
    """
    answer = queue.SimpleQueue()
    threading.Thread(target=_download, args=(url, timeout, answer), daemon=True).start()
    try:
        result = answer.get(timeout=timeout)
        if isinstance(getattr(result, "reason", result), TimeoutError):  # the socket's, a moment sooner
            raise queue.Empty
    except queue.Empty:
        raise TimeoutError(f"the server gave no complete answer within {timeout:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def _download(url: str, timeout: float, answer: queue.SimpleQueue) -> None:
    """Puts the bytes behind `url`, or the error, into `answer`."""
    end = time.monotonic() + timeout
    try:
        data = bytearray()
        with urlopen(Request(url, headers={"User-Agent": "vlkd"}), timeout=timeout) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            while announced <= MAX_DOWNLOAD and len(data) <= MAX_DOWNLOAD and time.monotonic() < end:
                chunk = response.read1(2**16)
                if not chunk:
                    return answer.put(bytes(data))
                data += chunk
        if time.monotonic() < end:  # else nobody waits any more
            raise ValueError(f"it is larger than {MAX_DOWNLOAD} bytes; load it yourself and give the PIL image")
    except Exception as error:
        answer.put(error)


def _open(source: str | bytes | os.PathLike, timeout: float) -> Image.Image:
    """Opens a path, URL, data URI, base64 string or the bytes of a file; the pixels are not read yet."""
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
        raise ValueError(f"its {size} bytes are no image of a kind that Pillow reads") from error


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
    """Turned and mirrored as the EXIF tag says; a tag that cannot be read says nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block makes Pillow raise, among others, a SyntaxError
        return image
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _from_deep(image: Image.Image) -> Image.Image:
    """16 or 32 bits or floats (modes I;16, I, F) -> 8 bits (L)."""
    wide = image if image.mode in ("I", "F") else image.convert("I")
    dtype = torch.float32 if wide.mode == "F" else torch.int32
    values = torch.frombuffer(bytearray(wide.tobytes()), dtype=dtype).view(wide.height, wide.width)
    if image.mode.startswith("I;16"):
        key = image.info.get("transparency", -1)  # a grey that stands for nothing: white, as all transparency
        values = values.masked_fill(values == key, 65535).to(torch.uint16)
    return Image.fromarray(_to_eight_bits(values).numpy())


def _from_array(array) -> Image.Image:
    """(height, width[, channels]) or (channels, height, width), with 1, 3 or 4 channels, -> PIL."""
    if not hasattr(array, "shape"):
        raise TypeError("it is of another type")
    if not isinstance(array, torch.Tensor):
        array = array.copy()  # torch refuses the negative strides of `array[..., ::-1]`, OpenCV's BGR made RGB
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
    Pixels of any type -> uint8, same shape.

    Floats are 0 to 1 or 0 to 255; integers 0 to 255 or, where one is larger or the type says so, 0 to 65535.

    Raises:
        ValueError: values outside of these; NaN.
    """
    if values.dtype == torch.uint8:
        return values
    kind, values = values.dtype, values.float()
    low, high = (value.item() for value in values.aminmax())
    if kind.is_floating_point or kind == torch.bool:
        top = 1 if high < 2 else 255  # 1.04 is neither a bright image of 0-1 nor a dark one of 0-255
    else:
        top = 65535 if kind == torch.uint16 or high > 255 else 255
    if not (low >= -ROUNDING * top and high <= (1 + ROUNDING) * top):  # so that NaN is refused, too
        raise ValueError(
            f"its values run from {low:g} to {high:g}; give 0 to 255, floats from 0 to 1, or 16 bits from 0 to 65535"
        )
    return (values * (255 / top)).round().clamp(0, 255).to(torch.uint8)
