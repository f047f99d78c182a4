"""`make study`: the paper's claims and choices on the microworld, each row with several seeds, as tables and a page.

    python -m microworld.study                                  # everything, then the report; resumes where it stopped
    python -m microworld.study --rows paper without-icti        # some rows alone
    python -m microworld.study --report                         # tables, plots and page of what is there

Every row is `vlkd train` with a recipe and a few keys changed (microworld/study/rows.py), by a schedule shorter than
`make demo`'s. What a row gave lies in OUTPUT_DIR/<row>/<seed>/metrics.json and is kept as long as the row's settings,
the exam's size and the teachers stay what they were.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from microworld.study.jobs import _log, jobs_of, run_jobs
from microworld.study.page import write_report
from microworld.study.results import load_results
from microworld.study.rows import ROWS, rows_named
from microworld.study.settings import POOL, add_arguments


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
