"""`vlkd report`: the results in a metrics.json as a Markdown table."""

import argparse
import os
import re
import sys
from typing import Any

from trainer.evaluation.metrics_file import load_metrics, markdown_report, write_atomically


def add_command(commands: Any) -> None:
    parser = commands.add_parser("report")
    parser.add_argument("metrics", metavar="METRICS.json", help="a file that `make demo` or `vlkd evaluate` wrote")
    parser.add_argument(
        "--into", metavar="FILE.md", help="document in which to replace <!-- figures: NAME --> … <!-- /figures -->"
    )
    parser.add_argument("--name", help="NAME of the marks; default: the file's recipe, task or dataset")
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
    print(f"Updated '{name}' in {args.into}", file=sys.stderr)
    return 0


def replace_figures(file: str | os.PathLike, name: str, report: str) -> None:
    """Put `report` between the marks of `name` in a Markdown file. Raise a ValueError unless both occur once."""
    try:
        with open(file, encoding="utf-8", newline="") as document:
            text = document.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"--into {file} cannot be read: {error}") from error
    start, end = f"<!-- figures: {name} -->", "<!-- /figures -->"
    parts = re.split(rf"^{re.escape(start)}[ \t]*\r?$", text, flags=re.MULTILINE)
    if len(parts) != 2:
        raise ValueError(f"--into {file} has {len(parts) - 1} lines '{start}'; write it once, and '{end}' below.")
    close = re.search(r"^<!-- (/?)figures\b.*-->[ \t]*\r?$", parts[1], flags=re.MULTILINE)
    if close is None or not close[1]:
        raise ValueError(f"--into {file} has no '{end}' after '{start}'; add it below the results.")
    newline = "\r\n" if "\r\n" in text else "\n"
    block = f"{start}\n\n{report.strip()}\n\n".replace("\n", newline)
    write_atomically(file, parts[0] + block + parts[1][close.start() :])
