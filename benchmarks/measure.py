"""Shared by the benchmarks: checkpoints with random weights, photos, `vlkd train` as a process, and the report."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
)

from microworld.dataset import load
from modeling_vlkd import VLKDConfig
from trainer.cli.report import replace_figures
from trainer.cost.estimate import teacher_config
from trainer.evaluation.metrics_file import as_markdown, how_measured, measurement_environment

ROOT = Path(__file__).resolve().parents[1]
TEACHERS = ROOT / "microworld" / "teachers"
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
DISTINCT = 64  # different photos; further files are hard links to them
INTERVAL = 0.05  # seconds between two measurements of the memory


def recipe(model: str) -> dict[str, Any]:
    """The train.yaml in a folder of hub_configs/."""
    return yaml.safe_load((ROOT / "hub_configs" / model / "train.yaml").read_text(encoding="utf-8"))


def random_checkpoints(model: str, folder: Path) -> dict[str, str]:
    """Save a CLIP and a BART with the sizes in hub_configs/ and random weights; return them as options of train.yaml.

    Nothing is downloaded. The tokenizers are the microworld's, which does not change the speed.
    """
    config = VLKDConfig.from_pretrained(ROOT / "hub_configs" / model)
    clip_name = recipe(model)["clip"]
    local = ROOT / clip_name  # a folder in the recipe of the microworld
    text = teacher_config(str(local) if local.is_dir() else clip_name, config.projection_dim)
    tokenizers = {kind: AutoTokenizer.from_pretrained(TEACHERS / kind) for kind in ("clip", "bart")}
    text.eos_token_id = tokenizers["clip"].eos_token_id
    vision = config.vision_config.to_dict()
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=config.projection_dim)
    for kind, network in (("clip", CLIPModel(clip)), ("bart", BartForConditionalGeneration(config.text_config))):
        network.save_pretrained(folder / kind)
        tokenizers[kind].save_pretrained(folder / kind)
    AutoImageProcessor.from_pretrained(ROOT / "hub_configs" / model).save_pretrained(folder / "clip")
    return {"clip": str(folder / "clip"), "bart": str(folder / "bart")}


def save_photos(folder: Path, count: int, size: tuple[int, int]) -> dict[str, Any]:
    """Save noisy gradients of `size` as JPEGs with captions; return them as options of train.yaml."""
    folder.mkdir(parents=True)
    rng, width, height = np.random.default_rng(0), *size
    captions = [captions[0] for captions in load(size=DISTINCT, captions_per_image=1)["captions"]]
    lines = []
    for number in range(count):
        file, first = folder / f"{number}.jpg", folder / f"{number % DISTINCT}.jpg"
        if number < DISTINCT:
            coarse = Image.fromarray(rng.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8))
            pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
            grain = rng.normal(0, 4, (height, width, 1)).astype(np.int16)
            Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
        else:
            os.link(first, file)
        lines.append(json.dumps({"file_name": file.name, "caption": captions[number % DISTINCT]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    columns = {"image_column": "image", "caption_column": "caption", "dataset_train_split": "train"}
    return {
        "dataset_name": str(folder),
        "dataset_kwargs": None,
        **columns,
        "dataset_test_split": None,
        "eval_strategy": "no",
    }


def write_config(options: dict[str, Any], file: Path) -> Path:
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_first_step": False}
    file.write_text(yaml.safe_dump({**options, **quiet}))
    return file


def train(
    options: dict[str, Any], folder: Path, steps: int, processes: int = 1, threads: int | None = None
) -> dict[str, float]:
    """Run `vlkd train` for `2 * steps` steps, of which the first half warms up.

    Args:
        threads: threads per process; torch's default if None.

    Returns:
        `samples_per_second`, and `megabytes`, the peak resident memory of the largest process.

    Raises:
        RuntimeError: training failed; the message has the end of its log.
    """
    steps_options = {"max_steps": 2 * steps, "logging_steps": steps, "output_dir": str(folder / "out")}
    config = write_config({**options, **steps_options}, folder / "train.yaml")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "trainer.cli", "train", "--config", str(config)]
    environment = {**os.environ, "TQDM_DISABLE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(INTERVAL)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{shlex.join(command)} failed:\n{log.read()[-3000:]}")
    history = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    speed = [log["samples_per_second"] for log in history if "samples_per_second" in log][-1]
    return {"samples_per_second": speed, "megabytes": peak / 2**20}


def resident_bytes(pid: int) -> int:
    """The resident memory of the largest of a process and its children; 0 if it has ended."""
    try:
        process = psutil.Process(pid)
        return max(part.memory_info().rss for part in (process, *process.children(recursive=True)))
    except psutil.NoSuchProcess:
        return 0


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description)
    found.add_argument(
        "--into", metavar="FILE.md", help="write the report between the marks of this benchmark in the file"
    )
    return found


def report(name: str, rows: list[dict[str, Any]], into: str | None) -> None:
    """Print the rows as a Markdown table, how it was measured, and all of it as a line of JSON."""
    command = shlex.join(["python", *(word for word in sys.argv if word not in ("--into", into))])
    measured = {"command": command, **measurement_environment()}
    measured["machine"]["device"] = device()
    table = as_markdown([list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)])
    block = f"{table}\n{how_measured(measured)[:-1]}; {measured['machine']['device']}.\n"
    print(block)
    print(json.dumps({"benchmark": name, **measured, "rows": rows}))
    if into:
        replace_figures(into, name, block)


def device() -> str:
    """The name of the GPU, or the features of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    words = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    return "CPU with " + (", ".join(name for name in CPU_FEATURES if name in words) or "no AVX2")


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "·" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    if value < 0.1:
        return f"{value:.4f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
