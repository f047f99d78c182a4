"""What `vlkd evaluate` wrote: its figures in one table, and single scenes with what the model said about them."""

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from microworld.exam import GROUPS, Exam
from microworld.world.caption_reader import caption_is_true
from microworld.world.language import QUESTION_TYPES, is_right
from trainer.evaluation.formats import EMPTY, read_results
from trainer.evaluation.metrics_file import NAMES
from trainer.evaluation.runner import CLIP_TEXT

SCALE = 3  # of the pictures, relative to the images that the model reads
CONDITIONS = ("VLKD", "before VLKD", "blind", "shuffled images", "majority answer", CLIP_TEXT)
_NAMES = {"direct": "VLKD", "model": "VLKD", "reference": "before VLKD"}
_CONTROLS = {"VQA with shuffled images": "shuffled images", "VQA by the majority answer": "majority answer"}
_KNOWLEDGE = ("knowledge, seen two-step", "knowledge, never two-step")
_CAPTIONS, _RETRIEVAL = ("every object, nothing false",), ("text to image", "image to text")
ROWS = {
    "VQA": ("all", *QUESTION_TYPES, *GROUPS, *_KNOWLEDGE),
    "captions": (*_CAPTIONS, *GROUPS),
    "retrieval R@1 of 100": _RETRIEVAL,
    "text QA": ("exact match", "exact match, change"),
    "VQA, unseen pairs": ("all",),
    "VQA, unseen artist": ("all", GROUPS[1], "yes/no", *_KNOWLEDGE),
    "captions, unseen artist": _CAPTIONS,
    "retrieval R@1 of 100, unseen artist": _RETRIEVAL,
}


def merge(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The figures of several runs, ordered by `ROWS` and `CONDITIONS`; others are left out.

    Args:
        runs: the figures of the exam on the split, under any name, and of the runs that `evaluate` names.
    """
    found = {_place(run, figure): figure for run, figures in runs.items() for figure in figures}
    places = [(metric, row, condition) for metric, rows in ROWS.items() for row in rows for condition in CONDITIONS]
    return [found[place] | dict(zip(NAMES, place, strict=True)) for place in places if place in found]


def _place(run: str, figure: dict[str, Any]) -> tuple[str, str, str]:
    """The metric, row and condition of a run's figure in the merged table."""
    metric, condition = figure["metric"], _NAMES.get(figure["condition"], figure["condition"])
    if metric in _CONTROLS:
        metric, condition = "VQA", _CONTROLS[metric]
    if run == "before":
        condition = "before VLKD" if condition == "VLKD" else f"{condition}, before VLKD"
    if run.startswith("unseen"):
        metric = f"{metric}, {run.replace('_', ' ')}"
    return metric, figure["row"], condition


@dataclass(frozen=True)
class Said:
    """A text of the model, whether it is right, and a right text."""

    text: str
    right: bool
    truth: str

    def __str__(self) -> str:
        return f"{'✓' if self.right else '✗'} {self.text or '(nothing)'}"


@dataclass(frozen=True)
class Card:
    """A scene's picture, the model's caption if it wrote one, and (question, answer) pairs."""

    picture: Image.Image
    caption: Said | None
    answers: list[tuple[str, Said]]


def sample_cards(exam: Exam, number: int, answers: Path, captions: Path | None = None) -> list[Card]:
    """`number` random scenes that have questions, with the predictions about them in the two files."""
    answer_of = _read(answers, "question_id", "answer")
    caption_of = _read(captions, "image_id", "caption") if captions else {}
    asked = defaultdict(list)
    for key, (row, question) in enumerate(exam.questions):
        answer = Said(answer_of[key], is_right(answer_of[key], question.accepted), question.answer)
        asked[row].append((question.text, answer))
    cards = []
    for row in random.Random(0).sample(sorted(asked), number):
        text = caption_of.get(row)
        right = text is not None and caption_is_true(text, exam.scenes[row])
        caption = None if text is None else Said(text, right, exam.captions[row])
        cards.append(Card(exam.picture(row, SCALE), caption, asked[row]))
    return cards


def _read(file: Path, id_key: str, text_key: str) -> dict[int, str]:
    texts, _ = read_results(file, id_key, text_key)
    return {key: "" if text == EMPTY else text for key, text in texts.items()}
