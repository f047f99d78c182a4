"""`vlkd train`, killed again and again at random moments, ends with the weights of an uninterrupted run."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from caption_data import load

from trainer.checkpoints import complete_checkpoints

SUPPORT = Path(__file__).parents[1] / "support"
KILLS = 10  # of each kind of data, about half of them while a checkpoint is written
STEPS = 240


def start(config: Path, *flags: str, output=subprocess.PIPE) -> subprocess.Popen:
    """`vlkd train` in a process of its own."""
    command = [sys.executable, "-m", "trainer.cli", "train", "--config", str(config), *flags]
    path = f"{SUPPORT}{os.pathsep}{SUPPORT.parents[1]}"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    options = {"stdout": output, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    return subprocess.Popen(command, cwd=SUPPORT, **options)


def kill(process: subprocess.Popen, folder: Path, rng: random.Random) -> str:
    """Kill the run after some steps, at once or when it has begun to write a checkpoint; says which it was."""
    steps, lines = rng.randint(1, 15), []
    while sum("'loss'" in line for line in lines) < steps:
        lines.append(process.stdout.readline())
        assert lines[-1], f"the run ended before it was killed: {''.join(lines[-30:])}"
    now, in_save = time.time(), rng.random() < 0.5
    while in_save and not is_saving(folder, now) and process.poll() is None:
        pass
    time.sleep(rng.uniform(0, 0.02))
    process.kill()
    process.communicate()
    assert process.returncode == -9, "the run ended before it was killed"
    return "saving" if is_saving(folder, now) else "between saves"


def is_saving(folder: Path, since: float) -> bool:
    """Whether a checkpoint is being written, other than one that an earlier kill has left."""
    try:
        return Path(folder, "unfinished").stat().st_mtime > since
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_killed_at_random_moments(clip_dir, bart_dir, tmp_path, kind):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    options = {
        "clip": clip_dir,
        "bart": bart_dir,
        "dataset_name": "caption_data:load",
        "dataset_kwargs": {"rows": 20},
        "cache_dir": str(tmp_path / "cache"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "lr_scheduler_type": "cosine",
        "projector_optimizer": "muon",
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "save_steps": 5,
        "save_total_limit": 2,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    if kind == "stream":
        load(rows=20).to_parquet(tmp_path / "data" / "train-0.parquet")
        options |= {"dataset_name": str(tmp_path / "data"), "dataset_kwargs": None, "streaming": True}
        options |= {"dataloader_num_workers": 1}
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump(options))
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with open(tmp_path / "straight.log", "w") as log:
        uninterrupted = start(config, "--output_dir", str(straight), output=log)

    moments = []
    for number in range(KILLS + 1):
        done = complete_checkpoints(killed) if killed.exists() else []
        resume = ["--resume_from_checkpoint", "true"] if done else []
        process = start(config, "--output_dir", str(killed), *resume)
        if number < KILLS:
            moments.append(f"{kill(process, killed, rng)} after {done[-1].rpartition('-')[-1] if done else 0}")
    output, _ = process.communicate()
    assert process.returncode == 0, output[-2000:]
    assert uninterrupted.wait() == 0, (tmp_path / "straight.log").read_text()[-2000:]
    print("; ".join(moments))
    weights = (Path(folder, "model.safetensors").read_bytes() for folder in (straight, killed))
    assert next(weights) == next(weights)
    assert not (killed / "unfinished").exists()
