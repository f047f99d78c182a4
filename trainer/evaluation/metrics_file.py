"""Write, check and display metrics.json, the results of a measurement; docs/metrics.md describes its fields."""

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
NAMES = ("metric", "row", "condition")
NUMBERS = ("value", "n", "low", "high")
_NONE = "·"


@dataclass
class MetricTable:
    """Results by row of the table and by condition, both in the order in which they were added."""

    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add(self, metric: str, condition: str, found: dict[str, Proportion]) -> None:
        """Add one condition's proportions of a metric, by name of the row."""
        self.extend(condition, [{"metric": metric, "row": row, **p.as_dict()} for row, p in found.items()])

    def extend(self, condition: str, results: Iterable[dict[str, Any]]) -> None:
        """Add one condition's results: dicts of metric, row, value, n, low and high."""
        for result in results:
            record = {"metric": result["metric"], "row": result["row"], "condition": condition}
            record |= {key: round(result[key], 4) for key in NUMBERS}
            self.rows.setdefault((result["metric"], result["row"]), {})[condition] = record

    def as_list(self) -> list[dict[str, Any]]:
        """One record per result: metric, row, condition, value, n, low and high (95% interval)."""
        return [record for found in self.rows.values() for record in found.values()]


def _cells(results: list[dict[str, Any]]) -> list[list[str]]:
    """Header and body as text: the first condition with its interval, the others without."""
    first, *others = dict.fromkeys(result["condition"] for result in results)
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for result in results:
        rows.setdefault((result["metric"], result["row"]), {})[result["condition"]] = result
    lines = [["", first, "95% interval", "n", *others]]
    for (metric, row), found in rows.items():
        main = found.get(first)
        interval = f"{main['low']:.3f}–{main['high']:.3f}" if main else _NONE
        n = str(next(iter(found.values()))["n"])
        values = [f"{found[name]['value']:.3f}" if name in found else _NONE for name in (first, *others)]
        lines.append([f"{metric}: {row}", values[0], interval, n, *values[1:]])
    return lines


def terminal_table(results: list[dict[str, Any]]) -> str:
    """A table with columns aligned by spaces."""
    lines = _cells(results)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(results: list[dict[str, Any]]) -> str:
    return as_markdown(_cells(results))


def as_markdown(lines: list[list[str]]) -> str:
    """A Markdown table of a header and its body; all columns but the first are aligned to the right."""
    header, *body = lines
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def markdown_report(metrics: dict[str, Any]) -> str:
    """The table, followed by the command that reproduces it."""
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
    path: str | os.PathLike, results: list[dict[str, Any]], *, command: str, dataset: str, split: str, **settings: Any
) -> dict[str, Any]:
    """Write a metrics.json with `measurement_environment()`, and return its content.

    Args:
        path: of the file.
        results: as `MetricTable.as_list` returns them.
        command: that reproduces the results.
        dataset, split: that were measured on.
        settings: further keys, such as recipe, task, limit, or seconds by part of the work.

    Raises:
        ValueError: `load_metrics` would reject the content.
    """
    environment = measurement_environment()
    metrics = {"schema": SCHEMA, "command": command, "commit": environment.pop("commit")}
    metrics |= {"dataset": dataset, "split": split, **settings, **environment, "figures": results}
    check_metrics(metrics, str(path))
    write_atomically(path, json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
    return metrics


def measurement_environment() -> dict[str, Any]:
    """The commit of the code, the versions of torch and transformers, and the machine."""
    return {
        "commit": checkout_commit(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def load_metrics(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a metrics.json.

    Raises:
        ValueError: the file cannot be read, or a key or number is missing or invalid.
    """
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"metrics: '{path}' cannot be read as JSON: {error}") from error
    check_metrics(metrics, str(path))
    return metrics


def check_metrics(metrics: Any, path: str) -> None:
    """Raise a ValueError that names file, key and value if `metrics` does not follow docs/metrics.md."""

    def require(condition: Any, problem: str) -> None:
        if not condition:
            raise ValueError(f"metrics: '{path}' {problem}. Measure again, or repair the file.")

    figures = metrics.get("figures") if isinstance(metrics, dict) else None
    require(isinstance(figures, list) and figures, "holds no list of `figures`")
    require(metrics.get("schema") == SCHEMA, f"has schema {metrics.get('schema')!r}, not {SCHEMA}")
    for key in ("command", "dataset", "split"):
        require(isinstance(metrics.get(key), str) and metrics[key], f"has {key} {metrics.get(key)!r}, not a text")
    require(isinstance(metrics.get("commit", False), str | None), "has no commit that is a text or null")
    seen = set()
    for number, result in enumerate(figures):
        where = f"figures[{number}]"
        require(isinstance(result, dict), f"{where} is {result!r}, not an object")
        for key in NAMES:
            require(isinstance(result.get(key), str), f"{where} has {key} {result.get(key)!r}, not a text")
        for key in NUMBERS:
            value = result.get(key)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            require(is_number, f"{where} has {key} {value!r}, not a number")
        require(
            isinstance(result["n"], int) and result["n"] > 0, f"{where} has n {result['n']}, not a positive integer"
        )
        require(result["low"] <= result["high"], f"{where} has low {result['low']} above high {result['high']}")
        name = tuple(result[key] for key in NAMES)
        require(name not in seen, f"{where} is a second {' / '.join(name)}")
        seen.add(name)


def checkout_commit() -> str | None:
    """`git describe` of the checkout that this code is in, ending in "-dirty" if a tracked file was changed.

    None if the code is not in a checkout of its own (installed from a wheel, for example), or git is not installed.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A virtual environment may be inside another project's checkout.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Replace a file as a whole, keeping its permissions, so that an interrupted run leaves the old one."""
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    if path.exists():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)
