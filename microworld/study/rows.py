"""What the study trains: each row is the recipe of `make demo` with a few keys of `vlkd train` changed."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from microworld import RECIPE
from trainer.config_loader import ConfigLoader
from trainer.evaluation.metrics_file import load_metrics

RANDOM_BART = "random"  # as a row's `bart`: a BART of the teacher's shape with random weights, drawn from the seed
BASE = "recipe"  # the row that all others are compared with

# Question of the report -> name of each row -> the keys that it changes.
QUESTIONS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
ROWS = {BASE: {}} | {name: changes for rows in QUESTIONS.values() for name, changes in rows.items()}


def options_of(row: str) -> dict[str, Any]:
    """The recipe with the row's changes."""
    return yaml.load(RECIPE.read_text(encoding="utf-8"), Loader=ConfigLoader) | ROWS[row]


def fingerprint(row: str, seed: int, args: argparse.Namespace) -> str:
    """A hash of what a result depends on: the options, the teachers' weights, and the sizes in `args`."""
    settings = [options_of(row), seed, args.steps, args.scenes, args.weights]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def result(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """The metrics.json of a run, with any settings; None if there is none."""
    try:
        return load_metrics(args.output_dir / row / str(seed) / "metrics.json")
    except ValueError:
        return None


def finished(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """The metrics.json of a run with the present settings; None if there is none."""
    metrics = result(row, seed, args)
    return metrics if metrics and metrics.get("fingerprint") == fingerprint(row, seed, args) else None


def check_results(jobs: list[tuple[str, int]], args: argparse.Namespace) -> None:
    """Raise a ValueError if a run would replace a result that was made with other settings."""
    for row, seed in jobs:
        if result(row, seed, args) and not finished(row, seed, args):
            raise ValueError(
                f"{args.output_dir / row / str(seed)} has a result with other settings (the recipe, the base models, "
                "--steps or --scenes). Give another --output_dir, or delete it."
            )
