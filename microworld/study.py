"""`make study`: the paper's claims and choices on the microworld, each row with several seeds, as tables and a page.

    python -m microworld.study                                  # everything, then the report; resumes where it stopped
    python -m microworld.study --rows paper without-icti        # some rows alone
    python -m microworld.study --report                         # tables, plots and page of what is there

Every row is `vlkd train` with a recipe and a few keys changed (microworld/study_rows.py), by a schedule shorter than
`make demo`'s. What a row gave lies in OUTPUT_DIR/<row>/<seed>/metrics.json and is kept as long as the row's settings,
the exam's size and the teachers stay what they were.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from microworld.study_page import write_report
from microworld.study_results import load_results
from microworld.study_rows import BY_NAME, ROWS, rows_named
from microworld.study_settings import POOL, add_arguments, is_done, settings_of

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
    command = [sys.executable, "-m", "microworld.study_run", row, str(seed)]
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


def list_rows() -> str:
    """One line a row: its name, its recipe, what it changes."""
    width = max(len(row.name) for row in ROWS)
    changes = (" ".join(f"{name}={value}" for name, value in row.overrides.items()) for row in ROWS)
    return "\n".join(f"{row.name:{width}}  {row.base:5}  {what}" for row, what in zip(ROWS, changes, strict=True))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="run these alone; --list names them")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, at least 2 (default: %(default)s)")
    add_arguments(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the report goes (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--report", action="store_true", help="train nothing: make the report of what is there")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("scenes", POOL), ("seeds", 2), ("workers", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least {least}.")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the study; the exit code is 1 where a row failed, 2 with one line for what the user can mend."""
    failed = []
    try:
        args = parse(argv)
        if args.list:
            print(list_rows())
            return 0
        jobs = jobs_of([row.name for row in rows_named(args.rows)], args.seeds)
        failed = [] if args.report else run_jobs(jobs, args)
        for row, seed in failed:
            print(f"study: {row}, seed {seed}, failed: {_log((row, seed), args)} says why.", file=sys.stderr)
        results = load_results(args.output_dir, args.steps, args.scenes, args.seeds)
        print(write_report(results, args.docs, shlex.join(["python", "-m", "microworld.study", *_that_decide(args)])))
    except ValueError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 1 if failed else 2
    except KeyboardInterrupt:
        print("study: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _that_decide(args: argparse.Namespace) -> list[str]:
    """The options that decide the figures."""
    return ["--steps", str(args.steps), "--scenes", str(args.scenes), "--seeds", str(args.seeds)]


if __name__ == "__main__":
    sys.exit(main())
