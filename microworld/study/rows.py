"""What the study trains: each row is the recipe of `make demo` with a few keys of `vlkd train` changed."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from trainer.config_loader import ConfigLoader
from trainer.evaluation.metrics_file import load_metrics

RECIPE = Path("hub_configs/microworld/train.yaml")
RANDOM_BART = "random"  # as a row's `bart`: a BART of the teacher's shape with random weights, drawn from the seed
BASE = "recipe"  # the row that all others are compared with

# Options that are measured once, each alone. When an option is deleted from the code, delete its row.
OPTIONS = {
    "mlp-projector": {"image_projector": "mlp"},
    "expansion-4": {"image_token_expansion": 4, "projector_init": "random"},
    "with-itdd": {"itdd_weight": 3.0},
    "patch-attention-self": {"patch_attention": "self"},
    "encoder-without-prompt": {"prompt_in_encoder": False},
}
# Question of the report -> name of each row -> the keys that it changes.
QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "What is each loss for?": {
        "without-ttdm": {"ttdm_weight": 0.0},
        "without-itcl": {"itcl_weight": 0.0},
        "without-icti": {"icti_weight": 0.0},
    },
    "Is pretrained knowledge needed?": {"random-bart": {"bart": RANDOM_BART}},
    "What must be trained?": {
        "frozen-bart": {"freeze": "all"},
        "frozen-decoder": {"freeze": "decoder"},
        "random-projector": {"projector_init": "random"},
    },
    "What must the decoder see?": {"pooled-token": {"image_tokens": "pooled"}},
    "How much data is needed?": {
        "images-80": {"dataset_kwargs": {"size": 80, "captions_per_image": 5}},
        "images-800": {"dataset_kwargs": {"size": 800, "captions_per_image": 5}},
    },
    "What does it cost the language model?": {
        "lr-2e-6": {"learning_rate": 2e-6},
        "lr-1e-5": {"learning_rate": 1e-5},
        "lr-2e-4": {"learning_rate": 2e-4},
        "lr-1e-3": {"learning_rate": 1e-3},
    },
    "Do the options help?": OPTIONS,
}
ROWS = {BASE: {}} | {name: changes for rows in QUESTIONS.values() for name, changes in rows.items()}


def options_of(row: str) -> dict[str, Any]:
    """The recipe with the row's changes."""
    return yaml.load(RECIPE.read_text(encoding="utf-8"), Loader=ConfigLoader) | ROWS[row]


def fingerprint(row: str, seed: int, args: argparse.Namespace) -> str:
    """A hash of what a result depends on: the options, the teachers' weights, and the sizes in `args`."""
    settings = [options_of(row), seed, args.steps, args.scenes, args.weights]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def finished(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any] | None:
    """The metrics.json of a run with the present settings; None if there is none."""
    try:
        metrics = load_metrics(args.output_dir / row / str(seed) / "metrics.json")
    except ValueError:
        return None
    return metrics if metrics.get("fingerprint") == fingerprint(row, seed, args) else None
