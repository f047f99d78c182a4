"""Data loading: the loader of `vlkd train` compared with a plain loop over PIL and the processor.

    python benchmarks/data_loading.py

Reads batches from a folder of JPEGs with captions, without training.
"""

import json
import os
import tempfile
import time
from argparse import Namespace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from measure import parser, random_checkpoints, recipe, report, save_photos, write_config
from PIL import Image
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from trainer.build import build_trainer
from trainer.cli.train import ARGUMENTS
from trainer.vlkd_trainer import VLKDTrainer


def plain_loop(trainer: VLKDTrainer, folder: Path, batch: int) -> Any:
    """Endless batches of pixels and token ids; every image is decoded at full size in the main process."""
    processor = trainer.processing_class
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = cycle(lines)
    while True:
        chosen = list(islice(rows, batch))
        images = [Image.open(folder / row["file_name"]).convert("RGB") for row in chosen]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        yield pixels, processor.tokenizer([row["caption"] for row in chosen], padding=True, return_tensors="pt")


def endless(loader: DataLoader) -> Any:
    while True:
        yield from loader


def images_per_second(batches: Any, batch: int, count: int) -> float:
    """The speed over `count` images, after two batches that warm up."""
    for _ in range(2):
        next(batches)
    number = max(1, count // batch)
    start = time.perf_counter()
    for _ in range(number):
        next(batches)
    return number * batch / (time.perf_counter() - start)


def measure(size: tuple[int, int], checkpoints: dict[str, str], args: Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)  # the main process decodes too
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = recipe(args.model) | checkpoints | save_photos(folder / "images", args.images, size)
        options |= {"per_device_train_batch_size": args.batch, "use_cpu": True, "cache_image_features": "none"}
        options |= {"output_dir": str(folder / "out"), "cache_dir": str(folder / "cache")}
        for workers in args.workers:
            config = write_config({**options, "dataloader_num_workers": workers}, folder / "train.yaml")
            trainer = build_trainer(*HfArgumentParser(ARGUMENTS).parse_yaml_file(config))
            if not rows:
                speed = images_per_second(plain_loop(trainer, folder / "images", args.batch), args.batch, args.images)
                rows.append(row("plain PIL loop", size, speed, speed))
            loader = endless(trainer.get_train_dataloader())
            speed = images_per_second(loader, args.batch, args.images)
            rows.append(row(f"VLKD, {workers} workers", size, speed, rows[0]["images/s"]))
            loader.close()
    return rows


def row(loading: str, size: tuple[int, int], speed: float, plain: float) -> dict[str, Any]:
    return {
        "loading": loading,
        "photos": f"{size[0]} × {size[1]}",
        "images/s": speed,
        "times plain": speed / plain,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", default="vlkd-vit-base-patch16-bart-base", help="folder in hub_configs/")
    options.add_argument("--sizes", nargs="+", default=["640x480", "2000x1500"], help="sizes of the photos")
    options.add_argument("--workers", type=int, nargs="+", default=sorted({0, 1, os.cpu_count()}))
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--batch", type=int, default=32)
    args = options.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = random_checkpoints(args.model, Path(folder))
        rows = [row for size in sizes for row in measure(size, checkpoints, args)]
    report("data-loading", rows, args.into)


if __name__ == "__main__":
    main()
