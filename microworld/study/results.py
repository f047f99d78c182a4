"""What the study's runs gave, as figures with intervals.

A figure is the mean over seeds. Two things could have come out otherwise: the training (its seed) and the exam (its
scenes). The interval covers both: the squared standard error is the variance between seeds over their number plus the
variance between scenes over theirs, and Student's t takes Satterthwaite's degrees of freedom. Two rows are compared
scene by scene and seed by seed, since both saw the same exam and the same draws.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from microworld.study.rows import BY_NAME, ROWS
from microworld.study.settings import is_done, settings_of


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval."""

    value: float
    low: float
    high: float
    n: int  # trials of one seed

    @property
    def is_apart_from_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 4) for name in ("value", "n", "low", "high")}


def estimate(values: np.ndarray, n: int, bounds: tuple[float, float]) -> Estimate:
    """The mean of `values` and its interval over seeds and scenes.

    Args:
        values: (seeds, scenes), at least two of each.
        n: trials of one seed, to be reported.
        bounds: of what is measured; the interval is cut to them.

    Raises:
        ValueError: there is one seed only.
    """
    seeds, scenes = values.shape
    if seeds < 2:
        raise ValueError("an interval over seeds needs at least two.")
    mean = float(values.mean())
    of_seeds = values.mean(axis=1).var(ddof=1) / seeds
    of_scenes = values.mean(axis=0).var(ddof=1) / scenes
    variance = of_seeds + of_scenes
    if variance == 0:
        return Estimate(mean, mean, mean, n)
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_scenes**2 / (scenes - 1))
    spread = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return Estimate(mean, max(bounds[0], mean - spread), min(bounds[1], mean + spread), n)


def scene_values(right: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """A share of right trials as a mean over scenes, of which some are asked more than others.

    Args:
        right: (seeds, scenes), right trials of each scene.
        asked: (scenes,), trials of each.

    Returns:
        (seeds, scenes): a row's mean is that seed's share, and a scene's value how far it pulls the shares.
    """
    share = right.sum() / (len(right) * asked.sum())
    return share + (right - share * asked) / asked.mean()


@dataclass
class Results:
    """The runs that were done, by row and seed."""

    runs: dict[str, dict[int, dict[str, Any]]]
    steps: int
    scenes: int
    seeds: int
    missing: list[str] = field(default_factory=list)  # rows with fewer seeds than asked for, in words

    def has(self, *names: str) -> bool:
        return all(name in self.runs for name in names)

    def of(self, name: str, measure: str, split: str = "test") -> Estimate:
        """`measure` is "metric: row", as in "VQA: all"."""
        right, asked = self._counts(name, measure, split, list(self.runs[name]))
        return estimate(scene_values(right, asked), int(asked.sum()), (0.0, 1.0))

    def difference(self, name: str, other: str, measure: str, split: str = "test") -> Estimate:
        """How far row `name` lies above row `other`, over the seeds that both have."""
        seeds = [seed for seed in self.runs[name] if seed in self.runs[other]]
        right, asked = self._counts(name, measure, split, seeds)
        right_other, _ = self._counts(other, measure, split, seeds)
        values = scene_values(right, asked) - scene_values(right_other, asked)
        return estimate(values, int(asked.sum()), (-1.0, 1.0))

    def above_blind(self, name: str, kind: str = "all") -> Estimate:
        """VQA with the image above VQA without it, by the same models."""
        seeds = list(self.runs[name])
        right, asked = self._counts(name, f"VQA: {kind}", "test", seeds)
        blind, _ = self._counts(name, f"blind VQA: {kind}", "test", seeds)
        values = scene_values(right, asked) - scene_values(blind, asked)
        return estimate(values, int(asked.sum()), (-1.0, 1.0))

    def mean(self, name: str, key: str) -> float:
        """Of `train_seconds` or `samples_per_second`, over the seeds."""
        return float(np.mean([run[key] for run in self.runs[name].values()]))

    def best(self, names: Iterable[str], measure: str = "VQA: all") -> str:
        """The row that validation chooses."""
        return max(names, key=lambda name: self.of(name, measure, "validation").value)

    @cached_property
    def measures(self) -> list[str]:
        run = next(iter(next(iter(self.runs.values())).values()))
        return list(run["by_scene"]["test"])

    @property
    def commits(self) -> list[str]:
        found = {run["commit"] or "unknown" for seeds in self.runs.values() for run in seeds.values()}
        return sorted(found)

    def _counts(self, name: str, measure: str, split: str, seeds: list[int]) -> tuple[np.ndarray, np.ndarray]:
        counted = [self.runs[name][seed]["by_scene"][split][measure] for seed in seeds]
        return np.array([found["right"] for found in counted], dtype=float), np.array(counted[0]["asked"], dtype=float)


def load_results(output: Path, steps: int, scenes: int, seeds: int) -> Results:
    """The runs of these settings in `output`; a row with fewer than two is left out.

    Raises:
        ValueError: there is nothing to report.
    """
    runs, missing = {}, []
    for row in ROWS:
        found = {}
        for seed in range(1, seeds + 1):
            folder = output / row.name / str(seed)
            if is_done(folder, settings_of(row, seed, steps, scenes)["fingerprint"]):
                found[seed] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if len(found) >= 2:
            runs[row.name] = found
        if len(found) < seeds:
            missing.append(f"{row.name} ({len(found)} of {seeds} seeds)")
    if not runs:
        raise ValueError(
            f"--output_dir {output} holds no row with two seeds of {steps} steps and {scenes} scenes by the present "
            "recipes and teachers: run the study first."
        )
    return Results(runs, steps, scenes, seeds, missing)


def as_json(results: Results, command: str) -> dict[str, Any]:
    """docs/study.json: every figure of both splits, and every row's difference from what it is compared with."""
    splits = {
        split: [
            {"metric": metric, "row": kind, "condition": name, **results.of(name, measure, split).as_dict()}
            for name in results.runs
            for measure in results.measures
            for metric, kind in [measure.split(": ", 1)]
        ]
        for split in ("test", "validation")
    }
    pairs = [(name, BY_NAME[name].against) for name in results.runs]
    pairs = [(name, other) for name, other in pairs if other and results.has(other)]
    return {
        "schema": 1,
        "command": command,
        "commit": ", ".join(results.commits),
        "dataset": "microworld",
        "split": "test",
        "steps": results.steps,
        "scenes": results.scenes,
        "seeds": results.seeds,
        "missing": results.missing,
        "rows": [
            {
                "row": name,
                "recipe": BY_NAME[name].base,
                "overrides": BY_NAME[name].overrides,
                "train_seconds": round(results.mean(name, "train_seconds"), 1),
                "samples_per_second": round(results.mean(name, "samples_per_second"), 1),
            }
            for name in results.runs
        ],
        "differences": [
            {"row": name, "against": other, "measure": measure, **results.difference(name, other, measure).as_dict()}
            for name, other in pairs
            for measure in results.measures
        ],
        "figures": splits["test"],
        "validation_figures": splits["validation"],
    }
