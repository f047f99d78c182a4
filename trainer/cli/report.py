"""`vlkd report`."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from trainer.evaluation.metrics_file import _write_whole, load_metrics, markdown_report


# ------------------------------------------------------------------------------------------------------------ command
def add_command(commands: Any) -> None:
    parser = commands.add_parser("report")
    parser.add_argument(
        "metrics", metavar="METRICS.json", help="figures, as `make demo` or `vlkd evaluate` writes them"
    )
    parser.add_argument(
        "--into", metavar="FILE.md", help="replace what stands between <!-- figures: NAME --> and <!-- /figures -->"
    )
    parser.add_argument("--name", help="NAME of the marks; the recipe, task or dataset of the figures if unset")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report, or write it into the document."""
    metrics = load_metrics(args.metrics)
    report = markdown_report(metrics)
    if args.into is None:
        print(report, end="")
        return 0
    name = args.name or next(metrics[key] for key in ("recipe", "task", "dataset") if metrics.get(key))
    replace_figures(args.into, name, report)
    print(f"figures: {name} in {args.into}", file=sys.stderr)
    return 0


def replace_figures(file: str | os.PathLike, name: str, report: str) -> None:
    """Put `report` between the marks of `name` in a Markdown file; the file is replaced whole, or not at all.

    Raises:
        ValueError: the file cannot be read, or does not hold the two marks exactly once, each on a line of its own.
    """
    try:
        with open(file, encoding="utf-8", newline="") as document:
            text = document.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"--into {file} cannot be read: {error}") from error
    start, end = f"<!-- figures: {name} -->", "<!-- /figures -->"
    begun = re.split(rf"^{re.escape(start)}[ \t]*\r?$", text, flags=re.MULTILINE)
    if len(begun) != 2:
        raise ValueError(f"--into {file} has {len(begun) - 1} lines '{start}'; write it once, and '{end}' below.")
    close = re.search(r"^<!-- (/?)figures\b.*-->[ \t]*\r?$", begun[1], flags=re.MULTILINE)
    if close is None or not close[1]:
        raise ValueError(f"--into {file} has no '{end}' after '{start}'; write it where the figures end.")
    newline = "\r\n" if "\r\n" in text else "\n"
    block = f"{start}\n\n{report.strip()}\n\n".replace("\n", newline)
    _write_whole(Path(file), begun[0] + block + begun[1][close.start() :])
