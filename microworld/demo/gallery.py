"""The demo's contact sheet: gallery.png."""

import random
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform

from microworld.demo.results import SCALE, Card
from microworld.world.scenes import CANVAS

GREEN, RED, INK = "#1a7f37", "#cf222e", "#1f2328"
COLOR = {True: GREEN, False: RED}  # of what is right, and of what is wrong
_DPI = 100
_SIDE, _GAP, _LINE = SCALE * CANVAS, 28, 30  # pixels: of a picture, between two cards, of a line of text
_LINES = 9  # of text in a card: at most 5 of the caption, 2 of the question and 2 of the answer


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
