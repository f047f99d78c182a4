"""The demo's pictures: the losses of training, and a contact sheet."""

import json
import random
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform

from microworld.demo.results import SCALE, Card
from microworld.world.scenes import CANVAS

TERMS = {
    "ttdm": "TTDM: squared distance of the text embeddings",
    "itcl": "ITCL: image-text cross-entropy",
    "icti": "ICTI: caption cross-entropy",
}
GREEN, RED, INK = "#1a7f37", "#cf222e", "#1f2328"
COLOR = {True: GREEN, False: RED}  # of what is right, and of what is wrong
_DPI = 100
_SIDE, _GAP, _LINE = SCALE * CANVAS, 28, 30  # pixels: of a picture, between two cards, of a line of text
_LINES = 9  # of text in a card: at most 5 of the caption, 2 of the question and 2 of the answer


def plot_training(trainer_state: Path, file: Path) -> None:
    """Draw every loss term that a run logged over its steps, one panel each.

    Raises:
        ValueError: the run logged no loss term.
    """
    history = json.loads(trainer_state.read_text(encoding="utf-8"))["log_history"]
    terms = [term for term in TERMS if any(term in log for log in history)]
    if not terms:
        raise ValueError(f"{trainer_state} holds no losses: set logging_steps below the number of steps.")
    figure = Figure(figsize=(4.2 * len(terms), 3.4), layout="constrained")
    for axis, term in zip(figure.subplots(1, len(terms), squeeze=False).flat, terms, strict=True):
        logs = [log for log in history if term in log]
        axis.plot([log["step"] for log in logs], [log[term] for log in logs], ".-", color="#0969da")
        axis.set_title(TERMS[term], fontsize=11)
        axis.set(xlabel="step", ylim=(0, None))
        axis.grid(color="#e4e7eb")
        axis.spines[:].set_visible(False)
    figure.savefig(file, dpi=_DPI)


def draw_gallery(cards: list[Card], file: Path, columns: int = 4) -> None:
    """Draw full lines of cards: picture, caption, one question and the answer; green is right, red is wrong."""
    rng, lines = random.Random(0), len(cards) // columns
    width, height = _SIDE + _GAP, _SIDE + _LINE * _LINES + _GAP
    figure = Figure(((columns * width + _GAP) / _DPI, (lines * height + _GAP) / _DPI), dpi=_DPI)
    for number, card in enumerate(cards[: lines * columns]):
        line, column = divmod(number, columns)
        x, y = _GAP + column * width, (lines - line) * height  # of the upper left corner
        figure.figimage(np.asarray(card.picture), x, y - _SIDE, origin="upper")
        caption, (question, answer) = card.caption, rng.choice(card.answers)
        verdict = str(answer) if answer.right else f"{answer} (right: {answer.truth})"
        y -= _SIDE + 10
        parts = ((str(caption), 5, COLOR[caption.right]), (question, 2, INK), (verdict, 2, COLOR[answer.right]))
        for text, most, color in parts:
            text = textwrap.fill(text, 36, max_lines=most, placeholder=" …")
            style = {"size": 15, "linespacing": 1.35, "va": "top", "parse_math": False}
            figure.text(x, y, text, color=color, transform=IdentityTransform(), **style)
            y -= _LINE * (text.count("\n") + 1) + 5
    figure.savefig(file)
