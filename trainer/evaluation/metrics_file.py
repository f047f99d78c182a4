"""Write, check and display metrics.json, the results of an evaluation; docs/metrics.md describes its fields."""

import argparse
import json
import math
import os
import shlex
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
    """Results by row of the table and by condition, both in the order of addition."""

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
    """The table's header and rows as text. Only the first condition has an interval."""
    first, *others = dict.fromkeys(result["condition"] for result in results)
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for result in results:
        rows.setdefault((result["metric"], result["row"]), {})[result["condition"]] = result
    lines = [["", first, "95% interval", "n", *others]]
    for (metric, row), found in rows.items():
        main = found.get(first)
        n = str(next(iter(found.values()))["n"])
        values = [_number(found[name]["value"]) if name in found else _NONE for name in (first, *others)]
        lines.append([f"{metric}: {row}", values[0], interval(main) if main else _NONE, n, *values[1:]])
    return lines


def interval(result: dict[str, Any]) -> str:
    """`0.665–0.697`, or `−0.010 to 0.001` with a negative bound."""
    return (" to " if result["low"] < 0 else "–").join(_number(result[bound]) for bound in ("low", "high"))


def _number(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def terminal_table(results: list[dict[str, Any]]) -> str:
    """A table aligned with spaces."""
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
    """A Markdown table of a header and rows; all columns but the first are aligned to the right."""
    header, *body = lines
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"


def markdown_report(metrics: dict[str, Any]) -> str:
    """The table and a sentence about how it was measured."""
    return f"{markdown_table(metrics['figures'])}\n{how_measured(metrics)}\n"


def how_measured(metrics: dict[str, Any]) -> str:
    """One Markdown sentence: the command, the commit and the machine of a measurement."""
    commit = f"commit `{metrics['commit']}`" if metrics.get("commit") else "code outside a git checkout"
    limit = f"the first {metrics['limit']} rows only" if metrics.get("limit") else ""
    seconds = " and ".join(f"{round(s)} s to {part}" for part, s in metrics.get("seconds", {}).items())
    machine, versions = metrics.get("machine"), metrics.get("versions", {})
    with_what = [f"{machine['cores']} cores, threads: {machine['threads']}"] if machine else []
    with_what += [f"{name} {version}" for name, version in versions.items()]
    parts = [f"Measured with `{metrics['command']}` on {commit}", limit, seconds, ", ".join(with_what)]
    return "; ".join(part for part in parts if part) + "."


# --------------------------------------------------------------------------------------------------------------- file
def write_metrics(
    path: str | os.PathLike, results: list[dict[str, Any]], *, command: str, dataset: str, split: str, **settings: Any
) -> dict[str, Any]:
    """Write a metrics.json with `measurement_environment()`, and return its content.

    Args:
        path: the file.
        results: as `MetricTable.as_list` returns them.
        command: reproduces the results.
        dataset, split: the evaluated data.
        settings: further keys, such as recipe, task, limit, or seconds by part of the work.

    Raises:
        ValueError: the content is invalid (see `check_metrics`).
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
    """Return the content of a metrics.json. Raise a ValueError if the file cannot be read or is invalid."""
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"metrics: '{path}' cannot be read as JSON: {error}") from error
    check_metrics(metrics, str(path))
    return metrics


def check_metrics(metrics: Any, path: str) -> None:
    """Raise a ValueError that names file and key if `metrics` does not follow docs/metrics.md."""
    invalid = f"metrics: '{path}' is not a valid metrics.json:"
    figures = metrics.get("figures") if isinstance(metrics, dict) else None
    if not isinstance(figures, list) or metrics.get("schema") != SCHEMA:
        raise ValueError(f"{invalid} it must be an object with `schema` {SCHEMA} and a list of `figures`.")
    if missing := [key for key in ("command", "dataset", "split", "figures") if not metrics.get(key)]:
        raise ValueError(f"{invalid} `{missing[0]}` is missing or empty.")
    seen = set()
    for number, result in enumerate(figures):
        is_result = (
            isinstance(result, dict)
            and all(isinstance(result.get(key), str) for key in NAMES)
            and all(type(result.get(key)) in (int, float) and math.isfinite(result[key]) for key in NUMBERS)
        )
        if not is_result:
            needed = f"the texts {', '.join(NAMES)} and the numbers {', '.join(NUMBERS)}"
            raise ValueError(f"{invalid} figures[{number}] needs {needed}, but is {result!r:.300}.")
        name = tuple(result[key] for key in NAMES)
        if name in seen:
            raise ValueError(f"{invalid} figures[{number}] is a second {' / '.join(name)}.")
        seen.add(name)


def shell_command(words: list[str], args: argparse.Namespace, left_out: tuple[str, ...]) -> str:
    """A command line with the options that are set, except those in `left_out`."""
    for name, value in vars(args).items():
        if value is not None and name not in left_out:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words = [*words, f"--{name}", *map(str, values)]
    return shlex.join(words)


def checkout_commit() -> str | None:
    """`git describe` of this code's checkout, ending in "-dirty" if a tracked file was changed; None without one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # The package may be installed inside another project's checkout.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Replace a file atomically and keep its permissions."""
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    if path.exists():
        shutil.copymode(path, temporary)
    os.replace(temporary, path)
