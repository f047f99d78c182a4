"""Images read and preprocessed ahead of the model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.image_loader import load_images, min_jpeg_side

ROOT = Path(__file__).parents[2]


@pytest.fixture
def paths(images, tmp_path) -> list[Path]:
    """Five files, of which the third is no image and the fifth is missing."""
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=False):
        image.save(path)
    paths[2].write_bytes(b"no image")
    return paths


@pytest.mark.parametrize("batch_size", [2, 8])  # with worker processes, and without
def test_batches_in_order_with_errors_by_number(processor, paths, batch_size):
    batches = list(load_images(read_image, paths, processor, batch_size))
    assert [batch.numbers for batch in batches] == ([[0, 1], [3], []] if batch_size == 2 else [[0, 1, 3]])
    errors = {number: error for batch in batches for number, error in batch.errors.items()}
    assert errors.keys() == {2, 4} and "are not an image that Pillow can read" in errors[2].cause
    assert "there is no such file" in errors[4].cause and str(paths[4]) in errors[4].message
    pixels = torch.cat([batch.pixel_values for batch in batches if batch.numbers])
    assert torch.equal(pixels, processor(images=[paths[number] for number in (0, 1, 3)])["pixel_values"])
    assert batches[-1].pixel_values is None if batch_size == 2 else len(batches) == 1


def test_no_images(processor):
    assert list(load_images(read_image, [], processor, 4)) == []


def test_random_numbers_of_the_caller_do_not_change(processor, paths):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(load_images(read_image, paths[:2] * 2, processor, 2))
    assert torch.equal(torch.rand(3), expected)


def read_or_die(path: Path) -> Image.Image:
    if path.name == "1.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(path)


def test_a_killed_process_is_an_error(processor, paths):
    with pytest.raises(ValueError, match="A process that reads images has ended"):
        list(load_images(read_or_die, paths, processor, 2))


LOAD = """
import sys, time
from PIL import Image
from transformers import CLIPImageProcessor
from trainer.image_loader import load_images

class Processor:
    image_processor = CLIPImageProcessor(size=448, crop_size=448)

def read(number):
    return Image.new("RGB", (448, 448))

batches = load_images(read, range(64), Processor, 4)  # 10 MB each: more than a pipe holds
next(batches)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_worker_processes_end_with_a_killed_parent(number):
    with subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout.readline() == "ready\n"
        workers = psutil.Process(parent.pid).children()
        assert workers
        time.sleep(2)  # until the workers wait to send their next batch
        parent.send_signal(number)
        parent.wait()
        end = time.monotonic() + 10
        while (alive := [worker for worker in workers if is_alive(worker)]) and time.monotonic() < end:
            time.sleep(0.2)
        for worker in alive:
            worker.kill()
        assert not alive


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_large_jpegs_are_decoded_at_reduced_size(processor, tmp_path):
    """The microworld of the tests reads 32 pixels: a side of 96 is enough, which 8 × 128 / 1024 gives."""
    Image.new("RGB", (1024, 1024), (200, 30, 90)).save(tmp_path / "a.jpg")
    assert min_jpeg_side(processor) == 96
    assert read_image(tmp_path / "a.jpg", min_side=96).size == (128, 128)
