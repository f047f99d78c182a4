"""What the model said of test images drawn at random, failures included: a contact sheet and a page."""

import base64
import html
import io
import random
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from microworld.exam.exam import Exam
from microworld.world.caption_reader import caption_is_true
from microworld.world.language import Question

_GREEN, _RED = "#1a7f37", "#cf222e"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>VLKD on the microworld</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
body {{ color: #1f2328; }}
h1 {{ margin-bottom: .2rem; }} h2 {{ margin-top: 2.2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }}
th, td {{ padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #d1d9e0; }}
th:first-child, td:first-child {{ text-align: left; }} td:nth-child(2) {{ font-weight: 600; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem; }}
article {{ border: 1px solid #d1d9e0; border-radius: 8px; padding: .8rem; }}
article img {{ width: 100%; image-rendering: pixelated; border-radius: 4px; }}
ul {{ padding-left: 1.1rem; margin: 0; font-size: 13.5px; }} p {{ margin: .5rem 0; }}
.right {{ color: #1a7f37; }} .wrong {{ color: #cf222e; }} small {{ color: #59636e; }}
img.wide {{ max-width: 100%; }}
</style></head><body>
<h1>VLKD on the microworld</h1>
<p>A frozen CLIP and a BART became one model from images and captions alone. No question was ever asked of an image
before this test. Below: exact match with 95% intervals, beside the controls.</p>
<div class="scroll">{table}</div>
<h2>Training</h2><img class="wide" src="training.png" alt="The loss terms over the steps">
<h2>Test images, drawn at random</h2>
<main>
{cards}
</main></body></html>
"""


@dataclass(frozen=True)
class Card:
    """One image with what was said of it."""

    image: Image.Image
    caption: str
    caption_right: bool
    answered: list[tuple[Question, str]]


def draw_cards(exam: Exam, answers: list[str], captions: list[str], number: int, seed: int = 0) -> list[Card]:
    """`number` scenes drawn at random, none left out for being wrong."""
    by_scene = defaultdict(list)
    for (row, question), answer in zip(exam.questions, answers, strict=True):
        by_scene[row].append((question, answer))
    rows = random.Random(seed).sample(range(len(exam.scenes)), min(number, len(exam.scenes)))
    return [Card(exam.images[r], captions[r], caption_is_true(captions[r], exam.scenes[r]), by_scene[r]) for r in rows]


def draw_gallery(
    exam: Exam, answers: list[str], captions: list[str], path: Path, columns: int = 6, lines: int = 4
) -> None:
    """Write the contact sheet: under each image its caption, a question and the answer; green is right, red wrong."""
    rng = random.Random(1)
    cards = draw_cards(exam, answers, captions, columns * lines)
    height = 0.5 + 3.9 * lines  # inches: the title, and for each line images of 2.6 above 1.3 of text
    figure = Figure(figsize=(2.8 * columns, height))
    margins = {"left": 0.01, "right": 0.99, "bottom": 1.3 / height, "top": 1 - 0.5 / height, "hspace": 1.3 / 2.6}
    axes = figure.subplots(lines, columns, squeeze=False, gridspec_kw={**margins, "wspace": 0.06})
    for axis in axes.flat:
        axis.axis("off")
    for axis, card in zip(axes.flat, cards, strict=False):
        _draw_card(axis, card, rng)
    figure.suptitle(
        "Test images drawn at random: caption, question, answer (green: right, red: wrong)",
        fontsize=13,
        y=1 - 0.1 / height,
    )
    figure.savefig(path, dpi=90)


def _draw_card(axis: Axes, card: Card, rng: random.Random) -> None:
    """An image above its caption and one of its questions with the answer."""
    question, answer = rng.choice(card.answered)
    right = answer == question.answer
    verdict = answer if right else f"{answer or '(nothing)'}   (right: {question.answer})"
    axis.imshow(card.image, interpolation="nearest")
    y = -0.04
    for text, color in (
        (card.caption or "(nothing)", _GREEN if card.caption_right else _RED),
        (question.question, "black"),
        (f"→ {verdict}", _GREEN if right else _RED),
    ):
        text = textwrap.fill(text, 38, max_lines=4, placeholder=" …")
        axis.text(0.0, y, text, transform=axis.transAxes, va="top", fontsize=8.5, color=color, parse_math=False)
        y -= 0.03 + 0.055 * (text.count("\n") + 1)


def write_page(exam: Exam, answers: list[str], captions: list[str], table: str, path: Path, number: int = 48) -> None:
    """Write index.html, which needs no other file but the pictures beside it."""
    cards = "\n".join(_card(card) for card in draw_cards(exam, answers, captions, number))
    path.write_text(_PAGE.format(table=_html_table(table), cards=cards), encoding="utf-8")


def _card(card: Card) -> str:
    buffer = io.BytesIO()
    card.image.save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    asked = "".join(
        f"<li>{html.escape(q.question)} {_said(answer, answer == q.answer, q.answer)}</li>"
        for q, answer in card.answered
    )
    return (
        f'<article><img alt="" src="data:image/png;base64,{picture}">'
        f"<p>{_said(card.caption, card.caption_right)}</p><ul>{asked}</ul></article>"
    )


def _said(text: str, right: bool, truth: str | None = None) -> str:
    mark = "✓" if right else "✗"
    aside = f" <small>(right: {html.escape(truth)})</small>" if truth and not right else ""
    return f'<b class="{"right" if right else "wrong"}">{mark} {html.escape(text) or "(nothing)"}</b>{aside}'


def _html_table(markdown: str) -> str:
    header, _, *body = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.strip().splitlines()
    ]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
