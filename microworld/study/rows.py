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


def run_folder(row: str, seed: int, args: argparse.Namespace) -> Path:
    """ROW/SEED-HASH of what a result depends on: the options, the teachers' weights, and the sizes in `args`."""
    settings = [options_of(row), seed, args.steps, args.scenes, args.weights]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return args.output_dir / row / f"{seed}-{digest[:8]}"


def finished(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """The metrics.json of a run; None if there is none."""
    file = run_folder(row, seed, args) / "metrics.json"
    try:
        return load_metrics(file) | {"file": file}
    except ValueError:
        return None
