"""Run rows of the study with `vlkd train` and `vlkd evaluate`, several at a time, each with one thread."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any

from tqdm.auto import tqdm
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, set_seed

from microworld.exam import PARTS, TEXT_QUESTIONS, write_task
from microworld.study.rows import BASE, RANDOM_BART, RECIPE, ROWS, finished, run_folder
from trainer.evaluation.metrics_file import load_metrics, write_atomically

Job = tuple[str, int]  # name of the row, seed
RANDOM_STATE = Lock()  # torch has one for all threads


def run_jobs(jobs: list[Job], args: argparse.Namespace) -> list[Job]:
    """Run the jobs that have no result; returns those that failed.

    No process outlives this function, also after Ctrl-C.
    """
    todo = [(row, seed) for row, seed in jobs if finished(row, seed, args) is None]
    failed, stop = [], Event()
    progress = tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc="study", unit="run", smoothing=0)
    with progress, ThreadPoolExecutor(args.workers) as pool:
        futures = {pool.submit(run, *job, args, stop): job for job in todo}
        try:
            for future in as_completed(futures):
                if error := future.exception():
                    failed.append(futures[future])
                    progress.write("study: {}, seed {}: {}".format(*futures[future], error), file=sys.stderr)
                progress.update()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return failed


def run(row: str, seed: int, args: argparse.Namespace, stop: Event) -> None:
    """Train and evaluate a row, write its metrics.json, delete the weights.

    All runs share the feature cache, which locks a column while it is written. Only the recipe sees the test split.
    """
    folder, clip, bart = run_folder(row, seed, args), args.teachers / "clip", args.teachers / "bart"
    model, log, figures = folder / "model", folder / "log.txt", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if ROWS[row].get("bart") == RANDOM_BART:
        bart = save_random_bart(bart, folder / "bart", seed)
    options = ROWS[row] | {"clip": clip, "bart": bart, "seed": seed, "output_dir": model}
    options |= {"cache_dir": args.output_dir / "cache"} | ({"max_steps": args.steps} if args.steps else {})
    start = time.time()
    call(log, stop, "train", "--config", RECIPE, *(f"--{key}={as_text(value)}" for key, value in options.items()))
    trained = time.time()
    for split in ("validation", "test") if row == BASE else ("validation",):
        for task, own in {
            write_task(folder / "exam.yaml", PARTS, size=args.scenes, seed=seed): ["--clip", clip],
            "text-retention": ["--reference_model", bart, "--limit", TEXT_QUESTIONS * args.scenes],
        }.items():
            output = folder / f"{Path(task).stem}-{split}"
            own += ["--split", split, "--device", "cpu", "--dtype", "float32", "--output_dir", output]
            call(log, stop, "evaluate", "--task", task, "--model", model, *own)
            metrics = load_metrics(output / "metrics.json")
            figures += [figure | {"condition": f"{figure['condition']}, {split}"} for figure in metrics["figures"]]
    metrics = {key: metrics[key] for key in ("schema", "commit", "versions", "machine")}
    metrics |= {"command": f"python -m microworld.study --rows {row}", "dataset": "microworld", "split": "validation"}
    metrics |= {"seconds": {"train": round(trained - start, 1), "evaluate": round(time.time() - trained, 1)}}
    metrics |= {"figures": figures}
    write_atomically(folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    for weights in (model, folder / "bart"):
        shutil.rmtree(weights, ignore_errors=True)


def as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def call(log: Path, stop: Event, *words: Any) -> None:
    """Run `vlkd` in its own process, and end it when `stop` is set. Raise a RuntimeError if it fails."""
    command = list(map(str, words))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with log.open("a", encoding="utf-8") as output:
        print("vlkd", shlex.join(command), file=output, flush=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = subprocess.Popen([sys.executable, "-m", "trainer.cli", *command], env=environment, **streams)
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
                process.wait()
    if process.returncode:
        raise RuntimeError(f"vlkd {command[0]} failed with exit code {process.returncode}; see {log}")


def save_random_bart(bart: Path, folder: Path, seed: int) -> Path:
    """Write the config and tokenizer of `bart` with random weights; returns `folder`."""
    with RANDOM_STATE:
        set_seed(seed)
        BartForConditionalGeneration(BartConfig.from_pretrained(bart)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bart).save_pretrained(folder)
    return folder
