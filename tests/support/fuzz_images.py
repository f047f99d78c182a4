"""Image files for the fuzz: sound ones of every kind, and what can become of them. `draw` makes case number n."""

import io
import random
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

KINDS = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
}
ENDINGS = ("jpg", "jpeg", "png", "gif", "webp", "tiff", "bmp", "JPG", "txt", "")
SIZES = ((1, 1), (2, 1), (1, 100), (20_000, 1), (1, 20_000), (3_000, 30), (90, 1))
COLOR = (200, 60, 30)


@dataclass(frozen=True)
class File:
    """What a person would find: a name, the bytes, and what was done to them.

    Args:
        color: the mean color of an image that is sound and can be read; None of every other.
    """

    name: str
    data: bytes
    story: str
    color: tuple[int, int, int] | None = None


def draw(number: int) -> File:
    """Case `number`, always the same."""
    rng = random.Random(number)
    kind = rng.choice(list(KINDS))
    mode = rng.choice(KINDS[kind])
    size = rng.choice(SIZES) if rng.random() < 0.15 else (rng.randint(2, 80), rng.randint(2, 80))
    sound, options = write(kind, mode, size, rng)
    harm = rng.choice(HARMS)
    data = harm(sound, rng)
    right = kind.lower().replace("jpeg", "jpg")
    ending = rng.choice(ENDINGS) if rng.random() < 0.2 else right
    readable = data == sound and max(size) <= 100 * min(size) and size != (1, 1)
    color = (255, 255, 255) if "transparency" in options else expected(mode)
    return File(
        f"{number}.{ending}", data, f"{kind} {mode} {size} {options} {harm.__name__}", color if readable else None
    )


def expected(mode: str) -> tuple[int, int, int]:
    """Black and white are drawn white, colorless modes in a gray of 128."""
    if mode == "1":
        return (255, 255, 255)
    return COLOR if mode in ("RGB", "RGBA", "P", "CMYK", "YCbCr", "LAB") else (128, 128, 128)


def plain(mode: str, size: tuple[int, int]) -> Image.Image:
    """One color; LA and RGBA opaque."""
    color = Image.new("RGB", size, COLOR)
    if mode == "I;16":
        return Image.fromarray(np.full(size[::-1], 32_896, np.uint16))
    if mode == "I":
        return Image.fromarray(np.full(size[::-1], 128, np.int32))
    if mode == "F":
        return Image.fromarray(np.full(size[::-1], 128 / 255, np.float32))
    if mode == "LAB":
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        return ImageCms.applyTransform(color, to_lab)
    if mode == "P":
        return color.quantize(2)  # `convert` would mix its colors of others
    if mode in ("L", "LA"):
        return Image.new("L", size, 128).convert(mode)
    return Image.new("1", size, 1) if mode == "1" else color.convert(mode)


def write(kind: str, mode: str, size: tuple[int, int], rng: random.Random) -> tuple[bytes, list[str]]:
    """A sound file, and which of the format's possibilities it uses."""
    if kind == "WEBP":
        size = tuple(min(side, 16_000) for side in size)  # it knows no longer ones
    image, options = plain(mode, size), {}
    if kind == "JPEG":
        options = {"quality": rng.choice((30, 95)), "progressive": rng.random() < 0.3}
    if kind in ("JPEG", "PNG", "WEBP") and rng.random() < 0.3:
        options["exif"] = exif(rng)
    if kind in ("GIF", "WEBP", "PNG", "TIFF") and mode not in ("I", "F", "I;16", "LAB") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [image.copy() for _ in range(rng.randint(1, 3))]}
    if kind in ("PNG", "GIF") and mode == "P" and "save_all" not in options and rng.random() < 0.5:
        options["transparency"] = image.getpixel((0, 0))
    if kind == "TIFF":
        options["compression"] = rng.choice((None, "tiff_deflate", "tiff_lzw", "packbits"))
    if kind == "WEBP":
        options["lossless"] = rng.random() < 0.5
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue(), sorted(options)


def exif(rng: random.Random) -> bytes:
    """A turned image, an orientation that does not exist, or a block that is none."""
    if rng.random() < 0.4:
        return b"Exif\0\0" + rng.randbytes(rng.randint(0, 60))
    tags = Image.Exif()
    tags[274] = rng.choice((1, 3, 6, 8, 0, 9, 65_535))
    return tags.tobytes()


# ------------------------------------------------------------------------------------------------- what becomes of it


def nothing(data: bytes, rng: random.Random) -> bytes:
    return data


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def bits_flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def head_damaged(data: bytes, rng: random.Random) -> bytes:
    """Where sizes, offsets and kinds stand."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(min(len(data), 64))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def zeros(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = rng.randint(1, len(data))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def spliced(data: bytes, rng: random.Random) -> bytes:
    kind = rng.choice(list(KINDS))
    other, _ = write(kind, rng.choice(KINDS[kind]), (30, 20), rng)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.randint(1, 50) + data[end:]


def noise_inside(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + rng.randbytes(rng.randint(1, 300)) + data[place:]


def nothing_left(data: bytes, rng: random.Random) -> bytes:
    return rng.choice((b"", b"\0", b"\0" * 5_000, rng.randbytes(500), b"<html>404</html>" * 20, data[:12]))


def giant(data: bytes, rng: random.Random) -> bytes:
    """The head declares sizes that the data does not have, below and above Pillow's limit."""
    width, height = (rng.choice((1, 200, 4_000, 12_000, 65_535, 2**31 - 1)) for _ in range(2))
    changed = bytearray(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif data[:2] == b"BM":
        changed[18:26] = struct.pack("<ii", width, height)
    elif data[:3] == b"GIF":
        changed[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif data[:2] == b"\xff\xd8":
        start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        changed[start + 5 : start + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif data[:4] == b"II*\0":
        for tag, value in ((256, width), (257, height)):
            at = data.find(struct.pack("<H", tag), 8)
            changed[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    elif data[8:16] == b"WEBPVP8X":
        changed[24:27], changed[27:30] = (struct.pack("<I", side)[:3] for side in (width, height))
    return bytes(changed)


HARMS = (
    nothing,
    nothing,
    truncated,
    bits_flipped,
    bits_flipped,
    head_damaged,
    zeros,
    spliced,
    repeated,
    noise_inside,
    nothing_left,
    giant,
    giant,
)
