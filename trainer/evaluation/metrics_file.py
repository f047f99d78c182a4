"""metrics.json: what a measurement leaves behind. It is written, checked and shown here; docs/metrics.md tells its
fields. `vlkd report` prints one as a Markdown table, or puts it between the marks of a Markdown file.
"""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from trainer.evaluation.intervals import Proportion

SCHEMA = 1
FIGURE_KEYS = ("metric", "row", "condition", "value", "n", "low", "high")
_NONE = "·"


@dataclass
class MetricTable:
    """MetricTable by row of the table and by condition, both in the order in which they were added."""

    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add(self, metric: str, condition: str, found: dict[str, Proportion]) -> None:
        """Add one condition's figures of a metric: `found` maps the name of a row to its figure."""
        self.extend(condition, [{"metric": metric, "row": row, **p.as_dict()} for row, p in found.items()])

    def extend(self, condition: str, figures: Iterable[dict[str, Any]]) -> None:
        """Add one condition's figures: dicts of metric, row, value, n, low and high."""
        for figure in figures:
            record = {"metric": figure["metric"], "row": figure["row"], "condition": condition}
            record |= {key: round(figure[key], 4) for key in ("value", "n", "low", "high")}
            self.rows.setdefault((figure["metric"], figure["row"]), {})[condition] = record

    def as_list(self) -> list[dict[str, Any]]:
        """One record a figure: metric, row, condition, value, n, low and high (95% interval)."""
        return [record for found in self.rows.values() for record in found.values()]


def _cells(figures: list[dict[str, Any]]) -> list[list[str]]:
    """Header and body as text: the first condition with its interval, the controls without."""
    first, *others = dict.fromkeys(figure["condition"] for figure in figures)
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for figure in figures:
        rows.setdefault((figure["metric"], figure["row"]), {})[figure["condition"]] = figure
    lines = [["", first, "95% interval", "n", *others]]
    for (metric, row), found in rows.items():
        main = found.get(first)
        interval = f"{main['low']:.3f}–{main['high']:.3f}" if main else _NONE
        n = str(next(iter(found.values()))["n"])
        values = [f"{found[name]['value']:.3f}" if name in found else _NONE for name in (first, *others)]
        lines.append([f"{metric}: {row}", values[0], interval, n, *values[1:]])
    return lines


def terminal_table(figures: list[dict[str, Any]]) -> str:
    """Columns lined up by spaces."""
    lines = _cells(figures)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(figures: list[dict[str, Any]]) -> str:
    """A GitHub table."""
    header, *body = _cells(figures)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def markdown_report(metrics: dict[str, Any]) -> str:
    """The table, and beneath it how to make it again."""
    return f"{markdown_table(metrics['figures'])}\n{how_measured(metrics)}\n"


def how_measured(metrics: dict[str, Any]) -> str:
    """One Markdown sentence: the command, the commit and the machine of a measurement."""
    commit = f"commit `{metrics['commit']}`" if metrics["commit"] else "code outside a git checkout"
    limit = f"the first {metrics['limit']} rows only" if metrics.get("limit") else ""
    seconds = " and ".join(f"{round(s)} s to {part}" for part, s in metrics.get("seconds", {}).items())
    machine, versions = metrics.get("machine"), metrics.get("versions", {})
    with_what = [f"{machine['cores']} cores, threads: {machine['threads']}"] if machine else []
    with_what += [f"{name} {version}" for name, version in versions.items()]
    parts = [f"By `{metrics['command']}` on {commit}", limit, seconds, ", ".join(with_what)]
    return "; ".join(part for part in parts if part) + "."


# --------------------------------------------------------------------------------------------------------------- file
def write_metrics(
    path: str | os.PathLike, figures: list[dict[str, Any]], *, command: str, dataset: str, split: str, **settings: Any
) -> dict[str, Any]:
    """Write a metrics.json, with the commit, the versions and the machine of this process; returns what it holds.

    Args:
        path: of the file.
        figures: as `MetricTable.as_list` gives them.
        command: makes the figures again.
        dataset, split: what was measured on.
        settings: further keys, such as recipe, task, prompt, limit, or seconds by part of the work.

    Raises:
        ValueError: it would not be a metrics.json that `load_metrics` takes.
    """
    metrics = {"schema": SCHEMA, "command": command, "commit": checkout_commit()}
    metrics |= {"dataset": dataset, "split": split, **settings}
    metrics["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    metrics["machine"] = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    metrics["figures"] = figures
    check_metrics(metrics, str(path))
    _write_whole(Path(path), json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return metrics


def load_metrics(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a metrics.json.

    Raises:
        ValueError: it cannot be read, or a key or a number in it is missing or wrong.
    """
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"metrics: '{path}' cannot be read as JSON: {error}") from error
    check_metrics(metrics, str(path))
    return metrics


def check_metrics(metrics: Any, path: str) -> None:
    """Raise a ValueError that names file, key and remedy, if `metrics` does not follow docs/metrics.md."""
    where = f"metrics: '{path}'"
    figures = metrics.get("figures") if isinstance(metrics, dict) else None
    if not isinstance(figures, list) or not figures:
        raise ValueError(f"{where} holds no list of `figures`, as `make demo` and `vlkd evaluate` write it.")
    if metrics.get("schema") != SCHEMA:
        raise ValueError(f"{where} has schema {metrics.get('schema')!r}, not {SCHEMA}; measure again.")
    for key in ("command", "dataset", "split"):
        if not isinstance(metrics.get(key), str) or not metrics[key]:
            raise ValueError(f"{where} has {key} {metrics.get(key)!r}, which must be a text; measure again.")
    if not isinstance(metrics.get("commit", False), str | None):
        raise ValueError(f"{where} has no commit that is a text or null; measure again.")
    seen = set()
    for number, figure in enumerate(figures):
        if problem := _problem(figure):
            raise ValueError(f"metrics: figures[{number}] of '{path}' {problem}; measure again, or mend the file.")
        name = tuple(figure[key] for key in ("metric", "row", "condition"))
        if name in seen:
            raise ValueError(f"metrics: figures[{number}] of '{path}' is a second {' / '.join(name)}; keep one.")
        seen.add(name)


def _problem(figure: Any) -> str | None:
    """What is wrong with a figure, if anything."""
    if not isinstance(figure, dict):
        return f"is {figure!r}, no object"
    if missing := [key for key in FIGURE_KEYS if key not in figure]:
        return f"has no {', '.join(missing)}"
    for key in ("metric", "row", "condition"):
        if not isinstance(figure[key], str):
            return f"has {key} {figure[key]!r}, no text"
    for key in ("value", "n", "low", "high"):
        value = figure[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"has {key} {value!r}, no number"
    if not isinstance(figure["n"], int) or figure["n"] < 1:
        return f"has n {figure['n']!r}, no count of what was scored"
    return f"has low {figure['low']} above high {figure['high']}" if figure["low"] > figure["high"] else None


def checkout_commit() -> str | None:
    """`git describe` of the checkout this code is part of, ending in "-dirty" if a tracked file was changed.

    None where the code is in no checkout: installed from a wheel, say, or without git.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A virtual environment may lie inside another project's checkout: that one's commit tells nothing of us.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def _write_whole(path: Path, text: str) -> None:
    """Write beside the file and put it in its place, so that a stopped run leaves the old one."""
    path = path.resolve()
    beside = path.with_name(f".{path.name}.new")
    with open(beside, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    if path.exists():
        shutil.copymode(path, beside)
    os.replace(beside, path)
