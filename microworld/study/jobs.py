"""Run the rows of the study, several at once, each in a process of its own."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from microworld.study.rows import BY_NAME
from microworld.study.settings import is_done, settings_of

Job = tuple[str, int]  # a row's name and a seed


def jobs_of(rows: list[str], seeds: int) -> list[Job]:
    """Seed by seed, so that a study that was stopped has something to say of every row."""
    return [(row, seed) for seed in range(1, seeds + 1) for row in rows]


def run_jobs(jobs: list[Job], args: argparse.Namespace) -> list[Job]:
    """Run the jobs that have no result yet, `args.workers` at a time; returns those that failed."""
    todo = [job for job in jobs if not _is_done(job, args)]
    failed, running = [], {}
    progress = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="study", unit="run", smoothing=0)
    with progress, _ended_with_us(running):
        while todo or running:
            while todo and len(running) < args.workers:
                job = todo.pop(0)
                running[job] = _start(job, args)
                progress.set_postfix_str(", ".join(f"{row} {seed}" for row, seed in running))
            time.sleep(0.2)
            for job in [job for job, process in running.items() if process.poll() is not None]:
                code = running.pop(job).returncode
                if code:
                    failed.append(job)
                    progress.write(f"{job[0]}, seed {job[1]}, failed with {code}; the others go on.")
                progress.update()
    return failed


def _is_done(job: Job, args: argparse.Namespace) -> bool:
    row, seed = job
    settings = settings_of(BY_NAME[row], seed, args.steps, args.scenes)
    return is_done(args.output_dir / row / str(seed), settings["fingerprint"])


def _start(job: Job, args: argparse.Namespace) -> subprocess.Popen:
    """The job in a process of its own, single-threaded."""
    row, seed = job
    command = [sys.executable, "-m", "microworld.study.run", row, str(seed)]
    command += ["--steps", str(args.steps), "--scenes", str(args.scenes), "--output_dir", str(args.output_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with _log(job, args).open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _log(job: Job, args: argparse.Namespace) -> Path:
    folder = args.output_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{job[0]}-{job[1]}.log"


@contextmanager
def _ended_with_us(running: dict[Job, subprocess.Popen]) -> Iterator[None]:
    """However the block is left (Ctrl-C, a kill, an error), no job runs on."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, before)
