"""Read and preprocess images in worker processes, ahead of the model."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import ProcessorMixin

READERS, WORKERS = 4, 4  # threads of a process, and processes at most
MIN_SCALE = 3  # of the processor's size: the least size of a JPEG that is decoded at reduced size


@dataclass(frozen=True)
class Unreadable:
    """Why an image cannot be read: the whole message, and its cause alone."""

    message: str
    cause: str


@dataclass(frozen=True)
class ImageBatch:
    """The images of a batch that could be read, in order, and the others.

    Attributes:
        numbers: the number of each image among all.
        pixel_values: (images, 3, height, width), float32; None without images.
        errors: by the number of the image.
    """

    numbers: list[int]
    pixel_values: torch.Tensor | None
    errors: dict[int, Unreadable]


class _Images(Dataset):
    def __init__(self, read: Callable[[Any], Image.Image], sources: Sequence[Any], processor: ProcessorMixin):
        self.read, self.sources, self.image_processor = read, sources, processor.image_processor

    def __len__(self) -> int:
        return len(self.sources)

    def __getitems__(self, numbers: list[int]) -> list[tuple[int, np.ndarray | Unreadable]]:
        with ThreadPoolExecutor(READERS) as pool:
            return list(zip(numbers, pool.map(self._pixels, numbers), strict=True))

    def _pixels(self, number: int) -> np.ndarray | Unreadable:
        try:
            pixels = self.image_processor(self.read(self.sources[number]), return_tensors="pt")["pixel_values"]
        except ValueError as error:
            return Unreadable(str(error), str(error.__cause__ or error))
        return pixels[0].numpy()  # PyTorch sends tensors through shared memory, which containers often lack


def load_images(
    read: Callable[[Any], Image.Image], sources: Sequence[Any], processor: ProcessorMixin, batch_size: int
) -> Iterator[ImageBatch]:
    """Yield the images of `sources` in batches, in order.

    Args:
        read: returns the RGB image of a source, or raises a ValueError. It is called in other processes and threads.
        sources: paths, numbers or whatever `read` takes.
        processor: the model's processor.
        batch_size: images in a batch.

    Raises:
        ValueError: a process that reads images was killed.
    """
    batches = -(-len(sources) // batch_size)
    workers = 0 if batches < 2 else min(batches, available_cores(), WORKERS)
    loader = DataLoader(
        _Images(read, sources, processor),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_follow_the_parent,
        generator=torch.Generator(),  # the global one does not change
    )
    for items in _iterate(loader):
        errors = {number: found for number, found in items if isinstance(found, Unreadable)}
        arrays = {number: found for number, found in items if number not in errors}
        pixel_values = torch.from_numpy(np.stack([*arrays.values()])) if arrays else None
        yield ImageBatch([*arrays], pixel_values, errors)


def _iterate(loader: DataLoader) -> Iterator[list]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(f"A process that reads images has ended ({error}). It may have run out of memory.") from error


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_the_parent(worker: int) -> None:
    """Leave interrupts to the parent, and end with it, also if it was killed while this process waits to send."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def min_jpeg_side(processor: ProcessorMixin) -> int:
    """The minimum of a JPEG's shorter side when it is decoded at reduced size (see `read_image`).

    At three times the processor's size, the result differs from full decoding by 0.4 of 255 on average and by 4 at
    most, which is less than the loss by JPEG compression.
    """
    return MIN_SCALE * max(size for size in dict(processor.image_processor.size).values() if size)
