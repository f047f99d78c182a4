"""What the model said of test images drawn at random, failures included: a contact sheet and a page."""

import base64
import html
import io
import random
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from microworld.language import Question, caption_is_true  # noqa: E402
from microworld.task import Exam  # noqa: E402

_GREEN, _RED = "#1a7f37", "#cf222e"


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
    return [
        Card(exam.images[r], captions[r], caption_is_true(captions[r], exam.scenes[r]), by_scene[r]) for r in rows
    ]


def draw_gallery(exam: Exam, answers: list[str], captions: list[str], path: Path, columns: int = 6, lines: int = 4) -> None:
    """Write the contact sheet: under each image its caption, one question and the answer, green if right, red if wrong."""
    rng = random.Random(1)
    cards = draw_cards(exam, answers, captions, columns * lines)
    figure, axes = plt.subplots(lines, columns, figsize=(2.7 * columns, 3.9 * lines), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, card in zip(axes.flat, cards, strict=False):
        question, answer = rng.choice(card.answered)
        right = answer == question.answer
        axis.imshow(card.image, interpolation="nearest")
        said = [(textwrap.fill(card.caption or "(nothing)", 36), _GREEN if card.caption_right else _RED)]
        verdict = answer if right else f"{answer or '(nothing)'}   (right: {question.answer})"
        said += [(textwrap.fill(question.question, 36), "black"), (textwrap.fill(f"→ {verdict}", 36), _GREEN if right else _RED)]
        y = -0.04
        for text, color in said:
            axis.text(0.0, y, text, transform=axis.transAxes, va="top", fontsize=8.5, color=color)
            y -= 0.092 * (text.count("\n") + 1)
    figure.suptitle("Test images drawn at random: caption, question, answer (green: right, red: wrong)", fontsize=13)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def write_page(exam: Exam, answers: list[str], captions: list[str], table: str, path: Path, number: int = 48) -> None:
    """Write index.html, which needs no other file but the pictures beside it."""
    cards = "\n".join(_card(card) for card in draw_cards(exam, answers, captions, number))
    path.write_text(_PAGE.format(table=_html_table(table), cards=cards), encoding="utf-8")


def _card(card: Card) -> str:
    buffer = io.BytesIO()
    card.image.save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    asked = "".join(
        f"<li>{html.escape(q.question)} {_said(answer, answer == q.answer, q.answer)}</li>" for q, answer in card.answered
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
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.strip().splitlines()]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>VLKD on the microworld</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }}
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
