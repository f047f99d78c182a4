"""The report of the study: study.md with a plot, and study.json with all figures."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy import stats

from microworld.study.plots import draw_differences
from microworld.study.rows import BASE, QUESTIONS, ROWS, finished
from trainer.evaluation.metrics_file import as_markdown, how_measured, write_atomically

RETRIEVAL = "retrieval R@1 of 100"
# Name in the tables -> (metric, row, condition) of the figures in metrics.json whose mean it is.
MEASURES = {
    "VQA": [("VQA", "all", "direct")],
    "blind VQA": [("VQA", "all", "blind")],
    "yes/no": [("VQA", "yes/no", "direct")],
    "relation": [("VQA", "relation", "direct")],
    "knowledge, never two-step": [("VQA", "knowledge, never two-step", "direct")],
    "captions": [("captions", "every object, nothing false", "direct")],
    "retrieval": [(RETRIEVAL, "text to image", "direct"), (RETRIEVAL, "image to text", "direct")],
    "text QA change": [("text QA", "exact match, change", "model")],
}
PLOTTED = ["VQA", "captions", "retrieval", "text QA change"]
METHOD = Path(__file__).with_name("method.md").read_text(encoding="utf-8")
Runs = dict[str, dict[int, dict[str, Any]]]  # name of the row -> seed -> metrics.json


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its 95% interval, and the number of trials of all seeds."""

    value: float
    margin: float
    n: int


Estimates = dict[tuple[str, str, str], Estimate]  # (split or "difference", measure, name of the row)


def load_runs(args: argparse.Namespace) -> Runs:
    """The finished runs whose seed the recipe has too, of rows with at least two."""
    runs: Runs = {}
    for row in ROWS:  # the recipe is the first
        found = {seed: finished(row, seed, args) for seed in runs.get(BASE, range(1, args.seeds + 1))}
        runs[row] = {seed: run for seed, run in found.items() if run}
    return {row: found for row, found in runs.items() if len(found) > 1}


def estimates(runs: Runs) -> Estimates:
    """Every measure of every row, its difference to the recipe, and the recipe's measures on the test split."""
    found = {}
    for measure in MEASURES:
        base = {seed: measured(run, measure) for seed, run in runs[BASE].items()}
        for name in runs:
            own = {seed: measured(run, measure) for seed, run in runs[name].items()}
            changes = [(value - base[seed][0], n) for seed, (value, n) in own.items()]
            found["validation", measure, name] = estimate([*own.values()])
            found["difference", measure, name] = estimate(changes)
        found["test", measure, BASE] = estimate([measured(run, measure, "test") for run in runs[BASE].values()])
    return found


def measured(run: dict[str, Any], measure: str, split: str = "validation") -> tuple[float, int]:
    """The value of a measure in a run's metrics.json, and the number of its trials. A ValueError if it is missing."""
    found = {(figure["metric"], figure["row"], figure["condition"]): figure for figure in run["figures"]}
    names = [(metric, row, f"{condition}, {split}") for metric, row, condition in MEASURES[measure]]
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{run['file']} lacks {missing[0]}. Delete the file and run the row again.")
    figures = [found[name] for name in names]
    return sum(figure["value"] for figure in figures) / len(figures), figures[0]["n"]


def estimate(by_seed: Sequence[tuple[float, int]]) -> Estimate:
    """The mean of the values of two or more seeds, each with its number of trials, with Student's t interval."""
    values, trials = zip(*by_seed, strict=True)
    margin = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return Estimate(round(float(np.mean(values)), 4), round(float(margin), 4), sum(trials))


def summary(runs: Runs, found: Estimates, command: str) -> dict[str, Any]:
    """The content of study.json."""
    every = [run for seeds in runs.values() for run in seeds.values()]
    return {
        "command": command,
        "commit": ", ".join(sorted({run["commit"] or "unknown" for run in every})),
        "versions": every[0]["versions"],
        "machine": every[0]["machine"],
        "seconds": {part: round(np.mean([run["seconds"][part] for run in every]), 1) for part in every[0]["seconds"]},
        "rows": {row: {"changes": ROWS[row], "seeds": list(runs.get(row, ()))} for row in ROWS},
        "figures": [{"split": s, "measure": m, "row": row, **own._asdict()} for (s, m, row), own in found.items()],
    }


def as_text(found: Estimate, sign: str = "") -> str:
    """`0.713 ± 0.021`; with the sign "+" `−0.052 ± 0.018`, bold if the interval excludes 0."""
    text = f"{found.value:{sign}.3f} ± {found.margin:.3f}".replace("-", "−")
    return f"**{text}**" if sign and abs(found.value) > found.margin else text


# -------------------------------------------------------------------------------------------------------------- report
def write_report(runs: Runs, args: argparse.Namespace, command: str) -> str:
    """Write study.md, study.json and study.png into `args.docs`; returns a line for the user.

    study.md includes the handwritten study_findings.md of that folder.
    """
    page, learned, found = args.docs / "study.md", args.docs / "study_findings.md", estimates(runs)
    metrics, parts = summary(runs, found, command), ["# Ablations on the microworld", METHOD]
    args.docs.mkdir(parents=True, exist_ok=True)
    parts += ["## What we learned", learned.read_text(encoding="utf-8")] if learned.is_file() else []
    both = [(measure, *(found[split, measure, BASE] for split in ("validation", "test"))) for measure in MEASURES]
    lines = [[measure, as_text(own), f"{own.n:,}", as_text(test), f"{test.n:,}"] for measure, own, test in both]
    parts += ["## The recipe", as_markdown([["", "validation split", "n", "test split", "n"], *lines])]
    present = {question: [row for row in rows if row in runs] for question, rows in QUESTIONS.items()}
    if present := {question: rows for question, rows in present.items() if rows}:
        draw_differences(present, PLOTTED, found, args.docs / "study.png")
        parts += ["## Differences to the recipe", "![Differences to the recipe](study.png)"]
        parts += ["A filled mark's interval excludes 0: orange is below the recipe, blue is above."]
    for question, rows in present.items():
        parts += [f"## {question}", table(found, [BASE, *rows], runs)]
    parts += ["## Measurement", f"{how_measured(metrics)} Seconds are the mean of a run."]
    fewer = [f"{row} ({len(runs.get(row, ()))})" for row in ROWS if len(runs.get(row, ())) < args.seeds]
    parts += [f"Rows with fewer than {args.seeds} seeds: {', '.join(fewer)}."] if fewer else []
    write_atomically(page, "\n\n".join(part.strip() for part in parts) + "\n")
    write_atomically(args.docs / "study.json", json.dumps(metrics, indent=1) + "\n")
    return f"Wrote {page}, study.json and study.png."


def table(found: Estimates, rows: list[str], runs: Runs) -> str:
    """Rows with every measure, its difference to the recipe, and the seconds of training."""
    lines = [["", *MEASURES, "s to train"]]
    for row in rows:
        seconds = np.mean([run["seconds"]["train"] for run in runs[row].values()])
        cells = [row, *(as_text(found["validation", measure, row]) for measure in MEASURES), f"{seconds:.0f}"]
        changes = [as_text(found["difference", measure, row], "+") for measure in MEASURES]
        if row != BASE:
            changes = [f"`{yaml.safe_dump(ROWS[row], default_flow_style=True).strip()}`", *changes, ""]
            cells = ["<br>".join(pair) for pair in zip(cells, changes, strict=True)]
        lines.append(cells)
    return as_markdown(lines)
