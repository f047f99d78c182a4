"""`make study`: ablations on the microworld, each row with several seeds.

python -m microworld.study                              # all rows, then the report; resumes where it stopped
python -m microworld.study --rows recipe without-icti   # these rows only
python -m microworld.study --report                     # only the report of the finished runs
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from microworld import TEACHERS
from microworld.exam import POOL
from microworld.study.report import load_runs, write_report
from microworld.study.rows import BASE, ROWS
from microworld.study.run import run_jobs
from trainer.models import weights_digest


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, with the digests of the teachers as `weights`. A ValueError for a number that is too small."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", default=ROWS, help=", ".join(ROWS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, 2 or more")
    parser.add_argument("--steps", type=int, help="training steps instead of the recipe's; omits rows with their own")
    parser.add_argument("--scenes", type=int, default=300, help=f"scenes of each exam, {POOL} or more")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--teachers", type=Path, default=TEACHERS, help="folder with clip/ and bart/")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"), help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report")
    parser.add_argument("--report", action="store_true", help="train nothing, write the report of the finished runs")
    args = parser.parse_args(argv)
    for name, least in (("seeds", 2), ("steps", 1), ("scenes", POOL), ("workers", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            raise ValueError(f"--{name} is {value}; it must be {least} or more.")
    args.weights = [weights_digest(args.teachers / name) for name in ("clip", "bart")]
    if None in args.weights:
        raise ValueError(
            f"--teachers {args.teachers} must have the folders clip and bart, each with safetensors files."
        )
    return args


def train_and_evaluate(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Run what is not finished, seed by seed, so that an incomplete study has all rows; returns the failed runs.

    Raises:
        ValueError: another study uses the folder.
    """
    rows = [row for row in ROWS if row in args.rows and not (args.steps and "max_steps" in ROWS[row])]
    jobs = [(row, seed) for seed in range(1, args.seeds + 1) for row in rows]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(args.output_dir / ".lock", timeout=0):
            return run_jobs(jobs, args)
    except Timeout:
        raise ValueError(f"Another study uses {args.output_dir}. Wait for it, or give another --output_dir.") from None


def command_of(args: argparse.Namespace) -> str:
    """The command that gives the results in `args.output_dir`, for the report."""
    words = ["python", "-m", "microworld.study", "--seeds", args.seeds, "--scenes", args.scenes]
    words += ["--steps", args.steps] if args.steps else []
    words += ["--teachers", args.teachers] if args.teachers != TEACHERS else []
    return shlex.join(map(str, words))


def main(argv: list[str] | None = None) -> int:
    """Run the study and write its report.

    Returns:
        The exit code: 1 if a run failed, 2 after an error that the user can fix, 130 after Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs' processes too
    failed = []
    try:
        args = parse(argv)
        if not args.report:
            failed = train_and_evaluate(args)
        if not (runs := load_runs(args)):
            raise ValueError(f"No report: {args.output_dir} needs two finished runs of {BASE} with these settings.")
        print(write_report(runs, args, command_of(args)))
    except (ValueError, OSError) as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: stopped; the same command continues.", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
