"""What decides a result of the study, and whether a folder holds it. Light: the study itself loads no model."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from microworld.study.rows import RECIPES, Row

SPLITS = ("validation", "test")  # chosen on the first, reported on the second
POOL = 100  # retrieval is among this many
STEPS, SCENES = 250, 250
TEACHERS = "microworld/teachers"


def options_of(row: Row, seed: int, steps: int) -> dict[str, Any]:
    """Every key that `vlkd train` gets, but where it writes: recipe, shortened schedule, seed, what the row changes.

    The warmup, where it is told in steps, keeps its share of the schedule.

    Raises:
        ValueError: the row's recipe cannot be read.
    """
    try:
        recipe = yaml.safe_load(Path(RECIPES[row.base]).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{row.name}: its recipe {RECIPES[row.base]} cannot be read ({error.strerror}); run from the repository."
        ) from error
    warmup = recipe.get("warmup_steps", 0)
    warmup = round(warmup * steps / recipe["max_steps"]) if warmup >= 1 else warmup
    return {**recipe, "seed": seed, "max_steps": steps, "warmup_steps": warmup, **row.overrides}


def settings_of(row: Row, seed: int, steps: int, scenes: int) -> dict[str, Any]:
    """What decides a result: the options, the exam's size, the teachers' files; and a fingerprint of it all."""
    options = {name: value for name, value in options_of(row, seed, steps).items() if name != "output_dir"}
    settings = {"options": options, "scenes": scenes, "teachers": teachers_hash()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return {**settings, "fingerprint": digest}


def teachers_hash(folder: str = TEACHERS) -> str:
    """Of every file of the two teachers."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).glob("*/*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def is_done(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds a result of these settings."""
    try:
        return (
            json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["settings"]["fingerprint"] == fingerprint
        )
    except (OSError, ValueError, KeyError):
        return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a run shares with the whole study."""
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of every row (default: %(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=SCENES, help="scenes of each split's exam, at least 100 (default: %(default)s)"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/study"), help="default: %(default)s")
