"""Images of every kind and from every place: right, or refused by an error that says what is wrong."""

import base64
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from web_server import drip, flood, silence, start

from modeling_vlkd import image_loading_vlkd
from modeling_vlkd.image_loading_vlkd import download, read_image, to_rgb

ROOT = Path(__file__).parents[2]
WHITE, RED, BLUE = (255, 255, 255), (200, 30, 30), (30, 30, 200)
REFUSED = r"image .* cannot be read as an image: "


def two_colored(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, 8 wide and 4 high."""
    image = Image.new("RGB", (8, 4), RED)
    image.paste(BLUE, (4, 0, 8, 4))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette(transparency: int | bytes) -> bytes:
    """Red, transparent or half so, and green."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    return encoded(image, "png", transparency=transparency)


def deep(values: tuple[int, ...] = (0, 32768, 65535), mode: str = "I;16") -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


def animation(kind: str) -> bytes:
    """Red, then blue."""
    first, second = (Image.new("RGB", (4, 4), color) for color in (RED, BLUE))
    options = {"lossless": True} if kind == "webp" else {}
    return encoded(first, kind, save_all=True, append_images=[second], duration=100, **options)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces many pixels and has none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    sums = [(len(data), kind + data, zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", size) + body + struct.pack(">I", checksum) for size, body, checksum in sums
    )


def row(image: Image.Image) -> list[tuple[int, int, int]]:
    return [image.getpixel((x, 0)) for x in range(image.width)]


# kinds of images: the bytes, and what the first row shows

FILES = {
    "png": (encoded(two_colored(), "png"), [RED] * 4 + [BLUE] * 4),
    "cmyk": (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "tiff"), [(255, 0, 0)] * 2),
    "black and white": (
        encoded(two_colored("L").point([0] * 60 + [255] * 196, "1"), "png"),
        [WHITE] * 4 + [(0,) * 3] * 4,
    ),
    "palette": (palette(0), [WHITE, (0, 255, 0)]),
    "palette, half transparent": (palette(b"\x80\xff"), [(255, 127, 127), (0, 255, 0)]),
    "gray with alpha": (encoded(Image.new("LA", (1, 1), (10, 0)), "png"), [WHITE]),
    "color key": (encoded(two_colored(), "png", transparency=RED), [WHITE] * 4 + [BLUE] * 4),
    "alpha": (encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "png"), [WHITE]),
    "webp with alpha": (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "webp", lossless=True), [(127, 127, 127)]),
    "16 bits": (encoded(deep(), "png"), [(0,) * 3, (128,) * 3, WHITE]),
    "16 bits, color key": (encoded(deep(), "png", transparency=0), [WHITE, (128,) * 3, WHITE]),
    "16 bits, big end first": (encoded(deep(mode="I;16B"), "tiff"), [(0,) * 3, (128,) * 3, WHITE]),
    "16 bits, pgm": (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535), [(0,) * 3, (128,) * 3, WHITE]),
    "floats": (encoded(Image.new("F", (1, 1), 0.5), "tiff"), [(128,) * 3]),
    "gif, animated": (animation("gif"), [RED] * 4),
    "png, animated": (animation("png"), [RED] * 4),
    "webp, animated": (animation("webp"), [RED] * 4),
    "turned": (encoded(two_colored(), "png", exif=exif(3)), [BLUE] * 4 + [RED] * 4),
    "turned, tiff": (encoded(two_colored(), "tiff", exif=exif(3)), [BLUE] * 4 + [RED] * 4),
    "broken exif": (encoded(two_colored(), "png", exif=b"Exif\0\0garbage"), [RED] * 4 + [BLUE] * 4),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_shows_the_same_from_everywhere(kind, tmp_path, web):
    data, expected = FILES[kind]
    path = tmp_path / "image"
    path.write_bytes(data)
    url = web.add("/image", data)
    text = base64.b64encode(data).decode()
    sources = [
        path,
        str(path),
        Image.open(path),
        Image.open(io.BytesIO(data)),
        url,
        text,
        f"data:image/png;base64,{text}",
    ]
    for source in sources:
        image = read_image(source)
        assert (type(image), image.mode, row(image)) == (Image.Image, "RGB", expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(orientation, tmp_path):
    corners = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
    stored = {  # the scene as the camera stores it, by the tag's definition: where row 0 and column 0 lie
        1: corners,
        2: corners[:, ::-1],
        3: corners[::-1, ::-1],
        4: corners[::-1],
        5: corners.T,
        6: np.rot90(corners, 1),
        7: corners[::-1, ::-1].T,
        8: np.rot90(corners, -1),
    }[orientation]
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif(orientation))
    for source in (path, Image.open(path)):
        assert np.array_equal(np.asarray(read_image(source))[:, :, 0], corners)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (4, 4), WHITE).convert("RGBA" if mode == "RGBa" else "RGB")
    if mode == "LAB":
        image = Image.new("LAB", (4, 4), (255, 128, 128))
    assert to_rgb(image.convert(mode)).getpixel((0, 0)) == pytest.approx(WHITE, abs=1)


def test_an_image_in_memory_is_neither_copied_nor_changed():
    image = two_colored()
    assert read_image(image) is image
    turned = two_colored()
    turned.info["exif"] = exif(3).tobytes()
    assert row(read_image(turned)) == [BLUE] * 4 + [RED] * 4
    assert row(turned) == [RED] * 4 + [BLUE] * 4 and turned.getexif()[0x0112] == 3


def test_an_animation_keeps_its_current_frame():
    image = Image.open(io.BytesIO(animation("gif")))
    image.seek(1)
    assert row(read_image(image)) == [BLUE] * 4


# arrays and tensors

GREY = np.array([[0, 51, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        GREY[:, :, None],
        np.repeat(GREY[:, :, None], 3, axis=2),
        np.repeat(GREY[:, :, None], 3, axis=2)[:, :, ::-1],  # BGR made RGB: negative strides
        np.concatenate([np.repeat(GREY[:, :, None], 3, axis=2), np.full((1, 3, 1), 255, np.uint8)], axis=2),
        GREY.astype(np.int64),
        GREY.astype(np.float64),
        GREY / np.float32(255),
        GREY.astype(np.uint16) * 257,
        GREY.astype(np.int32) * 257,
        torch.from_numpy(GREY),
        torch.from_numpy(GREY) / 255,
        (torch.from_numpy(GREY) / 255).half(),
        (torch.from_numpy(GREY) / 255).bfloat16().requires_grad_(),
        torch.from_numpy(GREY.astype(np.uint16) * 257),
        torch.from_numpy(GREY) / 255 * 1.0005,  # rounding
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}-{tuple(array.shape)}",
)
def test_arrays_and_tensors(array):
    assert row(read_image(array)) == [(value,) * 3 for value in (0, 51, 255)]


def test_channels_may_come_first():
    pixels = np.asarray(two_colored())
    for array in (pixels.transpose(2, 0, 1), torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255):
        assert row(read_image(array)) == [RED] * 4 + [BLUE] * 4
    assert row(read_image(np.array([[True, False]]))) == [WHITE, (0, 0, 0)]
    assert row(read_image(np.zeros((1, 1), np.float32))) == [(0, 0, 0)]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[0.0, 1.04]]), "its values range from 0 to 1.04; give 0 to 255, floats from 0 to 1"),
        (np.array([[-1.0, 1.0]]), "from -1 to 1"),
        (np.array([[0.0, 300.0]]), "from 0 to 300"),
        (np.array([[0.0, np.nan]]), "from nan to nan"),
        (np.array([[0.0, np.inf]]), "from 0 to inf"),
        (np.array([[-1, 255]]), "from -1 to 255"),
        (np.array([[0, 70000]]), "from 0 to 70000"),
        (np.zeros((5, 4, 2)), r"its shape \(5, 4, 2\) is neither"),
        (np.zeros((2, 4, 4, 3)), r"its shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3)), r"its shape \(0, 4, 3\)"),
        (np.zeros(4), r"its shape \(4,\)"),
        (Image.new("F", (1, 1), 300.0), "from 300 to 300"),
        (Image.new("I", (1, 1), 70000), "from 70000 to 70000"),
        ({"image": "a.png"}, r"image \(dict\) .* its type is not supported"),
        (b"\x89PNG", r"image \(bytes\)"),
        (None, r"image \(NoneType\)"),
    ],
)
def test_what_is_no_image_is_refused(array, message):
    with pytest.raises(ValueError, match=message):
        read_image(array)


# broken and hostile files


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff", "ppm"])
def test_truncated_files(kind, images, tmp_path):
    data = encoded(images[0], kind)
    path = tmp_path / f"photo.{kind}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"photo.{kind}\) cannot be read as an image"):
        read_image(path)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        read_image(Image.open(io.BytesIO(data[: len(data) * 3 // 4])) if kind != "webp" else path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty, 0 bytes"),
        (b"no image", "its 8 bytes are not an image"),
        (b"\x89PNG\r\n\x1a\n", "its 8 bytes are not an image"),
        (png_header(20000, 20000), "400000000 pixels.* exceeds limit .* decompression bomb"),
        (png_header(2**31 - 1, 2**31 - 1), "decompression bomb"),
        (encoded(Image.new("L", (1, 101)), "png"), "1 x 101 pixels; .* 100 times as long"),
        (encoded(Image.new("1", (100_000, 10)), "png"), "100000 x 10 pixels"),
    ],
)
def test_bad_files(data, message, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    for source in (path, str(path)):
        with pytest.raises(ValueError, match=rf"image \(.*photo.png\) cannot be read as an image: .*{message}"):
            read_image(source)


def test_a_long_strip_may_be_a_hundred_times_as_long(processor):
    assert processor(images=Image.new("RGB", (1, 100)))["pixel_values"].shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"images\[0\] \(Image\) .* 0 x 5 pixels"):
        processor(images=Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", r"\(nowhere.png\) .* there is no such file, and it is neither an http\(s\) URL nor base64"),
        (Path("nowhere.png"), "there is no such file"),
        (Path("."), "there is no such file"),
        (".", "there is no such file"),
        ("", "it is empty"),
        ("file:///etc/passwd", "there is no such file"),
        ("ftp://127.0.0.1/a.png", "there is no such file"),
        ("/dev/zero", "there is no such file"),
        ("bm8gaW1hZ2U=", "its 8 bytes are not an image"),
        ("data:image/png,%89PNG", "nor base64"),
        ("A" * 10_000, r"\(A{60}… of 10000 characters\) .* its 7500 bytes are not an image"),
    ],
)
def test_strings_that_are_no_image(source, message):
    with pytest.raises(ValueError, match=message):
        read_image(source)


def test_a_list_says_which_image_it_was(processor, image, tmp_path):
    (tmp_path / "broken.png").write_bytes(encoded(image, "png")[:200])
    for source in (tmp_path / "broken.png", str(tmp_path / "broken.png")):
        with pytest.raises(ValueError, match=r"images\[1\] \(.*broken.png\) cannot be read as an image"):
            processor(images=[image, source])


# the web


@pytest.mark.parametrize("page", [silence, drip])
def test_a_server_that_does_not_answer_costs_a_moment(page, web):
    url = web.add("/image.png", page)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"{url}.*(timed out|within 0.3 seconds)"):
        read_image(url, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3


def test_a_page_that_is_too_large_is_not_fetched(web, monkeypatch):
    monkeypatch.setattr(image_loading_vlkd, "MAX_DOWNLOAD", 1000)
    assert download(web.add("/fits", b"." * 1000)) == b"." * 1000
    announced = web.add("/announced", lambda handler: start(handler, length=10**12))
    for url in (web.add("/large", b"." * 1001), announced, web.add("/endless", flood)):
        with pytest.raises(ValueError, match="it is larger than 1000 bytes"):
            read_image(url)


def test_what_else_the_web_answers(web):
    good = web.add("/good.png", FILES["png"][0])
    moved = web.add("/moved", lambda handler: start(handler, length=0, status=302, Location=good))
    assert row(read_image(moved)) == row(read_image(good.replace("http://", "HTTP://"))) == FILES["png"][1]
    circle = web.add("/circle", lambda handler: start(handler, length=0, status=302, Location="/circle"))
    cut = web.add("/cut.png", lambda handler: (start(handler, length=500), handler.wfile.write(FILES["png"][0][:50])))
    for url, message in (
        (good.replace("good", "gone"), "HTTP Error 404"),
        (circle, "infinite loop"),
        (web.add("/page.html", b"<html>"), "its 6 bytes are not an image"),
        (web.add("/empty.png", b""), "it is empty"),
        (cut, "cannot be read as an image"),
        ("http://127.0.0.1:1/a.png", "refused"),
        ("http://", "no host given"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(url)


def test_an_installed_plugin_for_heic_is_used(tmp_path):
    """By whatever imports the reader, such as a spawned worker. The plugin here knows the ending alone."""
    plugin = 'from PIL import Image\ndef register_heif_opener():\n    Image.register_open("HEIF", None)\n'
    plugin += '    Image.register_extension("HEIF", ".heic")\n'
    (tmp_path / "pillow_heif.py").write_text(plugin)
    code = "from modeling_vlkd.image_loading_vlkd import IMAGE_EXTENSIONS; assert '.heic' in IMAGE_EXTENSIONS"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True)
