"""Results of the study that nobody trained, with shares that a test sets: for the report's tests."""

import numpy as np

from microworld.study.results import Results
from microworld.study.rows import ROWS
from microworld.study.settings import options_of

KINDS = ("all", "background", "size", "shape", "color", "count", "relation", "yes/no", "one group", "two groups")
KNOWLEDGE = ("knowledge, seen two-step", "knowledge, never two-step")
MEASURES = (
    *(f"VQA: {kind}" for kind in (*KINDS, *KNOWLEDGE)),
    *(f"blind VQA: {kind}" for kind in KINDS),
    "captions: right",
    "retrieval R@1: text to image",
    "retrieval R@1: image to text",
    "text QA: all",
)
SHARES = {"VQA": 0.7, "blind VQA": 0.3, "captions": 0.5, "retrieval R@1": 0.95, "text QA": 0.97}


def made_up(
    shares: dict[str, dict[str, float]], scenes: int = 200, seeds: int = 3, noise: float = 0.003, names=None
) -> Results:
    """Rows with these shares of right trials, by row and metric ("VQA"); SHARES where a row names none.

    A scene is asked four times. It is as hard for every row, as scenes are, so that rows differ by their shares alone.
    """
    runs: dict = {}
    difficulty = np.random.default_rng(0).random((scenes, 4))
    for row in ROWS:
        if names is not None and row.name not in names:
            continue
        for seed in range(1, seeds + 1):
            jitter = np.random.default_rng([seed, *row.name.encode()]).normal(0, noise)
            by_scene = {}
            for measure in MEASURES:
                share = shares.get(row.name, {}).get(measure.split(": ")[0], SHARES[measure.split(": ")[0]])
                right = (difficulty < share + jitter * (0 < share < 1)).sum(axis=1)
                by_scene[measure] = {"asked": [4] * scenes, "right": right.tolist()}
            runs.setdefault(row.name, {})[seed] = {
                "by_scene": {"test": by_scene, "validation": by_scene},
                "settings": {"options": options_of(row, seed, 400)},
                "train_seconds": 60.0,
                "samples_per_second": 430.0,
                "commit": "abc1234",
            }
    return Results(runs, 400, scenes, seeds)
