"""Fixtures of all tests, with tiny checkpoints built once. pytest-xdist's first process imports this and runs no test:
what it does not need is imported by the fixtures.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from web_server import WebServer

if TYPE_CHECKING:
    from transformers import BatchFeature

    from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

PROMPTS = ["a photo of", "<mask>", "Question: what color is the circle? Answer: <mask>", "two dogs <mask> the grass"]


def pytest_collection_finish() -> None:
    """accelerate collects garbage after every training run: not among a million objects of imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def bart_dir(tmp_path_factory) -> str:
    """A BART checkpoint with its tokenizer."""
    from tiny_checkpoints import write_bart

    folder = str(tmp_path_factory.mktemp("bart"))
    write_bart(folder)
    return folder


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> str:
    """A CLIP checkpoint with its image processor and tokenizer: 16 patches, joint space of 24 dimensions."""
    from tiny_checkpoints import write_clip

    folder = str(tmp_path_factory.mktemp("clip"))
    write_clip(folder)
    return folder


@pytest.fixture(scope="session")
def processor(clip_dir, bart_dir) -> "VLKDProcessor":
    from modeling_vlkd import VLKDProcessor

    return VLKDProcessor.from_vision_text_pretrained(clip_dir, bart_dir)


@pytest.fixture(scope="session")
def model(clip_dir, bart_dir) -> "VLKDForConditionalGeneration":
    """The tiny VLKD, with the paper's linear W_d. Shared by all tests: one that changes it takes a copy."""
    from modeling_vlkd import VLKDForConditionalGeneration

    return VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, image_projector="linear")


@pytest.fixture(scope="session")
def vlkd_dir(model, processor, tmp_path_factory) -> str:
    """The tiny VLKD as a folder, with its code. One that changes it takes a copy."""
    folder = str(tmp_path_factory.mktemp("tiny-vlkd"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def micro_dir(tmp_path_factory) -> str:
    """The microworld's teachers, joined and untrained, as a folder: it reads longer prompts than the tiny one."""
    from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

    folder = str(tmp_path_factory.mktemp("micro-vlkd"))
    teachers = [str(Path(__file__).parents[1] / "microworld" / "teachers" / name) for name in ("clip", "bart")]
    VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    VLKDProcessor.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Four images of noise, each different."""
    import torch

    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (4, 40, 48, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@pytest.fixture(scope="session")
def image(images) -> Image.Image:
    return images[0]


@pytest.fixture(scope="session")
def batch(processor, images) -> "BatchFeature":
    """The four images with four prompts of different lengths, as the processor hands them to the model."""
    return processor(images=images, text=PROMPTS)


@pytest.fixture
def web(monkeypatch) -> Iterator[WebServer]:
    """A web server on loopback, reached past any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with WebServer() as server:
        yield server
