"""JPEGs decoded at reduced size: nothing visible changes, and reading is faster."""

import io
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import CLIPImageProcessorPil

from modeling_vlkd import VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data.rows import load_image
from trainer.image_loader import min_jpeg_side


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((2000, 1500), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def clip_processor(processor) -> VLKDProcessor:
    """With the sizes of CLIP ViT-L/14."""
    return VLKDProcessor(CLIPImageProcessorPil(), processor.tokenizer)


def jpeg(image: Image.Image, quality: int = 90, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def pixels(processor: VLKDProcessor, image: Image.Image) -> np.ndarray:
    """What the model would see, from 0 to 255."""
    options = {"do_normalize": False, "do_rescale": False}
    return processor.image_processor([image], return_tensors="np", **options)["pixel_values"][0].astype(float)


def test_rule(clip_processor, processor):
    assert min_jpeg_side(clip_processor) == 3 * 224
    assert min_jpeg_side(processor) == 3 * 32
    size = {"height": 10, "width": 20}
    assert min_jpeg_side(VLKDProcessor(CLIPImageProcessorPil(size=size), processor.tokenizer)) == 60


@pytest.mark.parametrize(
    ("size", "read"),
    [
        ((2000, 1500), (1000, 750)),
        ((1343, 3000), (1343, 3000)),
        ((1344, 3000), (672, 1500)),
        ((5376, 6000), (672, 750)),
    ],
)
def test_sides_stay_as_long_as_they_must(size, read):
    assert read_image(jpeg(Image.new("RGB", size)), min_side=672).size == read
    assert read_image(jpeg(Image.new("RGB", size))).size == size


def test_other_kinds_and_turned_images():
    file = io.BytesIO()
    Image.new("RGB", (800, 600)).save(file, "PNG")
    assert read_image(file.getvalue(), min_side=100).size == (800, 600)
    exif = Image.Exif()
    exif[274] = 6
    assert read_image(jpeg(Image.new("RGB", (800, 600)), exif=exif), min_side=100).size == (150, 200)
    assert read_image(jpeg(Image.new("CMYK", (800, 600))), min_side=100).size == (200, 150)
    assert read_image(jpeg(Image.new("L", (800, 600))), min_side=100).mode == "RGB"


@pytest.mark.parametrize("noise", [0, 12])
def test_nothing_visible_changes(photo, clip_processor, noise):
    """The change is smaller than the one that JPEG had made."""
    if noise:
        grain = np.random.default_rng(0).normal(0, noise, (1500, 2000, 3))
        photo = Image.fromarray((np.asarray(photo) + grain).clip(0, 255).astype(np.uint8))
    data = jpeg(photo)
    full = pixels(clip_processor, read_image(data))
    reduced = load_image({"bytes": data, "path": None}, "", "", min_jpeg_side(clip_processor))
    assert reduced.size == (1000, 750)
    change = np.abs(pixels(clip_processor, reduced) - full)
    by_jpeg = np.abs(pixels(clip_processor, photo) - full)
    print(f"mean {change.mean():.2f}, max {change.max():.0f}; by JPEG {by_jpeg.mean():.2f}, {by_jpeg.max():.0f}")
    assert change.max() <= 5 and change.mean() < 0.4 and change.mean() < by_jpeg.mean()


@pytest.mark.slow
def test_reading_is_faster(photo, clip_processor):
    data = jpeg(photo)

    def seconds(min_side: int | None) -> float:
        times = []
        for _ in range(15):
            start = time.perf_counter()
            pixels(clip_processor, read_image(data, min_side=min_side))
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    full, reduced = seconds(None), seconds(min_jpeg_side(clip_processor))
    print(f"2000 x 1500: {1000 * full:.0f} ms in full, {1000 * reduced:.0f} ms reduced, {full / reduced:.1f} times")
    assert full > 1.5 * reduced
