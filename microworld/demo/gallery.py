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


def draw_gallery(cards: list[Card], file: Path, columns: int = 4) -> None:
    """Draw full rows of cards: picture, caption, one question and the answer; green is right, red is wrong."""
    rng = random.Random(0)
    rows = [cards[start : start + columns] for start in range(0, len(cards) - columns + 1, columns)]
    texts = [[_texts(card, rng) for card in row] for row in rows]
    heights = [_SIDE + 10 + max(map(_height, row)) + _GAP for row in texts]
    y = sum(heights)  # of the row's upper edge
    figure = Figure(((columns * (_SIDE + _GAP) + _GAP) / _DPI, (y + _GAP) / _DPI), dpi=_DPI)
    for row, row_texts, height in zip(rows, texts, heights, strict=True):
        for column, (card, card_texts) in enumerate(zip(row, row_texts, strict=True)):
            _draw_card(figure, card, card_texts, _GAP + column * (_SIDE + _GAP), y)
        y -= height
    figure.savefig(file)


def _texts(card: Card, rng: random.Random) -> list[tuple[str, str]]:
    """The wrapped caption, question and answer, each with its color."""
    caption, (question, answer) = card.caption, rng.choice(card.answers)
    verdict = str(answer) if answer.right else f"{answer} (right: {answer.truth})"
    texts = ((str(caption), 5, COLOR[caption.right]), (question, 2, INK), (verdict, 2, COLOR[answer.right]))
    return [(textwrap.fill(text, 36, max_lines=most, placeholder=" …"), color) for text, most, color in texts]


def _height(texts: list[tuple[str, str]]) -> int:
    return sum(_LINE * (text.count("\n") + 1) + 5 for text, _ in texts)


def _draw_card(figure: Figure, card: Card, texts: list[tuple[str, str]], x: int, y: int) -> None:
    """`x` and `y` are those of the upper left corner."""
    figure.figimage(np.asarray(card.picture), x, y - _SIDE, origin="upper")
    y -= _SIDE + 10
    for text, color in texts:
        style = {"size": 15, "linespacing": 1.35, "va": "top", "parse_math": False}
        figure.text(x, y, text, color=color, transform=IdentityTransform(), **style)
        y -= _height([(text, color)])
