"""Training with and without the feature cache: samples per second, peak memory, MFU, and hours per epoch of CC3M.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --models microworld --batch 64 --steps 20

Each model has the sizes and the recipe of its folder in hub_configs/, random weights and generated photos. Each run is
a separate process of `vlkd train`. `vlkd cache` fills the cache first, and is timed too. MFU uses the FLOP that
`vlkd estimate` counts, with captions of 15 tokens.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from measure import ROOT, parser, random_checkpoints, recipe, report, save_photos, train, write_config
from transformers import HfArgumentParser

from modeling_vlkd import VLKDConfig
from trainer.cli.train import ARGUMENTS
from trainer.cost.estimate import CAPTION_TOKENS, CC3M, build_on_meta, teacher_config
from trainer.cost.flops import step_flops
from trainer.precision import find_device, is_bf16_fast

LARGE = ["vlkd-vit-base-patch16-bart-large", "vlkd-vit-large-patch14-bart-large"]


def peak_flops(low_precision: bool) -> float:
    """FLOP/s of a large matrix product on this device."""
    on_gpu = torch.cuda.is_available()
    size, kind = (8192, "cuda") if on_gpu else (2048, "cpu")
    left = torch.randn(size, size, device=kind, dtype=torch.bfloat16 if low_precision else torch.float32)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        left @ left
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def flops_per_sample(options: dict[str, Any], model: str, cached: bool) -> int:
    """FLOP of the student and, without the cache, of CLIP's vision tower."""
    model_args, _, args = HfArgumentParser(ARGUMENTS).parse_dict(options)
    config = VLKDConfig.from_pretrained(ROOT / "hub_configs" / model)
    namespace = Namespace(**vars(model_args) | vars(args), caption_tokens=CAPTION_TOKENS)
    teacher = teacher_config(args.clip, config.projection_dim)
    parts = step_flops(*build_on_meta(config, teacher, namespace), namespace)
    return sum(size for name, size in parts.items() if name != "teacher" and not (cached and name == "vision tower"))


def measure(model: str, args: Namespace) -> list[dict[str, Any]]:
    """The two rows of one model: live and cached."""
    folder = Path(tempfile.mkdtemp(prefix="vlkd-benchmark-"))
    try:
        count = 2 * args.steps * args.batch
        options = recipe(model) | random_checkpoints(model, folder)
        options |= save_photos(folder / "images", count, tuple(args.size))
        options |= {"per_device_train_batch_size": args.batch, "dataloader_num_workers": args.workers}
        options |= {"use_cpu": not torch.cuda.is_available(), "output_dir": str(folder / "out")}
        options |= {"cache_image_features": "none", "cache_dir": str(folder / "cache")}
        peak = args.device_flops or peak_flops(is_bf16_fast(find_device()))
        rows = [row(model, "live", train(options, folder, args.steps), None, options, peak)]
        options["cache_image_features"] = "all"
        seconds = fill(options, folder)
        rows.append(row(model, "cached", train(options, folder, args.steps), count / seconds, options, peak))
        rows[1]["times live"] = rows[1]["samples/s"] / rows[0]["samples/s"]
        return rows
    finally:
        shutil.rmtree(folder)


def fill(options: dict[str, Any], folder: Path) -> float:
    """Seconds that `vlkd cache` takes, including imports and loading."""
    config = write_config(options, folder / "cache.yaml")
    start = time.perf_counter()
    command = [sys.executable, "-m", "trainer.cli", "cache", "--config", str(config)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def row(model: str, images: str, run: dict, filled: float | None, options: dict, peak: float) -> dict[str, Any]:
    speed = run["samples_per_second"]
    return {
        "model": model,
        "images": images,
        "samples/s": speed,
        "times live": 1.0,
        "RAM, peak MB": run["megabytes"],
        "GFLOP per sample": flops_per_sample(options, model, images == "cached") / 1e9,
        "MFU": flops_per_sample(options, model, images == "cached") * speed / peak,
        "peak TFLOP/s": peak / 1e12,
        "hours per epoch of CC3M": CC3M / speed / 3600,
        "`vlkd cache`, images/s": filled,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--models", nargs="+", default=LARGE, help="folders in hub_configs/")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--steps", type=int, default=20, help="measured steps; as many warm up before")
    options.add_argument("--workers", type=int, default=8, help="processes that decode images")
    options.add_argument("--size", type=int, nargs=2, default=[640, 480], help="width and height of the photos")
    options.add_argument("--device_flops", type=float, help="peak FLOP/s; measured with a matrix product if unset")
    options.add_argument("--name", default="throughput", help="name of the marks in the file of --into")
    args = options.parse_args()
    report(args.name, [row for model in args.models for row in measure(model, args)], args.into)


if __name__ == "__main__":
    main()
