"""The demo's web page: index.html and its pictures, which need no network."""

import html
import re
from pathlib import Path
from string import Template
from typing import Any

from microworld.demo.results import Card, Said
from microworld.drawings import ARTISTS, FOLDER, HELD_OUT_ARTIST, drawing
from trainer.evaluation.metrics_file import how_measured, markdown_table

SUMMARY = {  # the short table: what a visitor reads, and the metric and row of the full one
    "Questions about a picture": ("VQA", "all"),
    "… with two or three groups of things": ("VQA", "two or three groups"),
    "… to be answered by yes or no": ("VQA", "yes/no"),
    "… that need knowledge of the thing in the picture": ("VQA", "knowledge, never two-step"),
    "… with things never seen together": ("VQA, unseen pairs", "all"),
    "… drawn by the unseen artist": ("VQA, unseen artist", "all"),
    "Captions that name everything and say nothing false": ("captions", "every object, nothing false"),
    "… of pictures by the unseen artist": ("captions, unseen artist", "every object, nothing false"),
    "Finding the picture of a caption among 100": ("retrieval R@1 of 100", "text to image"),
    "Questions about a text, without a picture (BART before: {before})": ("text QA", "exact match"),
}
SECTIONS = {  # name: title and explanation
    "scenes": ("Pictures", "Random scenes of the {split} split: none was selected, none was left out."),
    "knowledge": ("Seeing and knowing", "Random scenes. The answers are in no caption: BART knows them from texts."),
    "unseen_artist": (
        "Pictures by the unseen artist",
        "Random scenes. Neither CLIP nor VLKD was trained on these drawings.",
    ),
}
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>VLKD on the drawn world</title>
<style>
:root { --ink: #1f2328; --dim: #59636e; --line: #d9dfe5; --page: #fff; --card: #f6f8fa; --bar: #54aeff;
  --right: #1a7f37; --wrong: #cf222e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9aa4ae; --line: #31383f; --page: #0f1318;
  --card: #181d23; --bar: #1f6feb; --right: #4ac26b; --wrong: #ff8182; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 1180px;
  margin: auto; padding: 1.5rem 1rem 3rem; }
h1 { margin: 0 0 .5rem; line-height: 1.2; } h2 { margin: 2.5rem 0 .3rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; } small { display: block; } small, th, .dim { color: var(--dim); }
a { color: inherit; } .right { color: var(--right); } .wrong { color: var(--wrong); }
.artists, .cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); }
.artists { grid-template-columns: repeat(auto-fit, minmax(105px, 1fr)); text-align: center; font-size: .87rem; }
figure, article { margin: 0; border-radius: 10px; background: var(--card); overflow: hidden; }
figure { padding: .8rem; } figure img { width: 84px; } .unseen { outline: 2px dashed var(--wrong); }
article img { display: block; width: 100%; aspect-ratio: 1; } article div { padding: .2rem .9rem .9rem; }
article { line-height: 1.35; } article p { margin: .6rem 0; } article p b { font-weight: normal; }
ul { list-style: none; margin: 0; padding: 0; font-size: .87rem; } li b { display: block; }
li { padding: .3rem 0; border-top: 1px solid var(--line); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; font-weight: normal; }
td { border-top: 1px solid var(--line); } td:nth-child(2) { font-weight: bold; }
td:first-child { text-align: left; padding-left: 0; } .summary { max-width: 54rem; }
.summary td:first-child { white-space: normal; width: 100%; }
.bar { display: block; height: 7px; margin-top: .3rem; border-radius: 4px; position: relative;
  background: linear-gradient(var(--bar) 0 0) 0 / var(--value) 100% no-repeat var(--line); }
.bar i { position: absolute; top: -3px; width: 3px; height: 13px; background: var(--ink); }
details { overflow-x: auto; margin: 1rem 0; font-size: .87rem; } .wide { max-width: 100%; border-radius: 10px; }
@media (max-width: 560px) { th, td { padding: .4rem .3rem; font-size: .85rem; } }
</style></head><body>
<h1>VLKD on the drawn world</h1>
<p>A frozen CLIP and a BART were joined into one model by training on pictures with captions, and on nothing else.
<b>The questions on this page are the first that it was ever asked about a picture.</b></p>
<p>The drawings are by six artists. No part of the model was trained on the drawings of the last one.</p>
<div class="artists">$artists</div>
<h2>Results</h2>
<p>Shares of right answers and captions, for pictures that are not in the training data. “Blind” is the same model
without the picture; the mark on a bar shows it.</p>
$summary
<details><summary>All results</summary>$table<p class="dim">$measured</p></details>
<p>Below, <b class="right">✓</b> marks what is right and <b class="wrong">✗</b> what is wrong.</p>
$sections
<h2>Training</h2>
<img class="wide" src="training.png" alt="The three losses over the training steps">
<h2>The drawings</h2>
<p>They were rendered at 96 pixels with 64 colors, and are scaled, turned, mirrored and tinted in the pictures. Their
authors do not endorse this project.</p>
<ul>$credits</ul>
</body></html>
""")
_ARTIST = Template(
    '<figure class="$unseen"><img src="pictures/$artist.png" alt="an octopus"><figcaption>$name<br>'
    '<b class="wrong">$unseen</b></figcaption></figure>'
)
_CREDIT = Template(
    '<li><a href="$address">$name</a> by $author, <a href="https://spdx.org/licenses/$license.html">$license</a></li>'
)
_ATTRIBUTION = re.compile(  # a line of ATTRIBUTION.md
    r"\| `(?P<artist>.+)` \| \[(?P<name>.+?)\]\((?P<address>.+?)\).*? \| (?P<author>.+?) \| .* \| \[(?P<license>.+)\]"
)


def write_page(metrics: dict[str, Any], sections: dict[str, list[Card]], folder: Path) -> None:
    """Write index.html and pictures/ into `folder`; the page also shows training.png.

    Args:
        metrics: the content of metrics.json.
        sections: the cards of each of `SECTIONS`.
    """
    artists = (*ARTISTS, HELD_OUT_ARTIST)
    sets = {
        match["artist"]: match.groupdict() for match in _ATTRIBUTION.finditer((FOLDER / "ATTRIBUTION.md").read_text())
    }
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for artist in artists:
        drawing("octopus", artist).save(folder / "pictures" / f"{artist}.png")
        sets[artist]["unseen"] = "unseen" if artist == HELD_OUT_ARTIST else ""
    page = _PAGE.substitute(
        artists="".join(_ARTIST.substitute(sets[artist]) for artist in artists),
        summary=_summary(metrics["figures"]),
        table=_table(markdown_table(metrics["figures"])),
        measured=re.sub("`(.+?)`", r"<code>\1</code>", html.escape(how_measured(metrics))),
        sections="".join(_section(name, cards, metrics["split"], folder) for name, cards in sections.items()),
        credits="".join(_CREDIT.substitute(sets[artist]) for artist in artists),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _summary(figures: list[dict[str, Any]]) -> str:
    """The short table, with a bar for each figure."""
    found = {(figure["metric"], figure["row"], figure["condition"]): figure for figure in figures}
    lines = ["<tr><th></th><th>VLKD</th><th>95% interval</th><th>blind</th></tr>"]
    for label, place in SUMMARY.items():
        own, blind, before = (found.get((*place, condition)) for condition in ("VLKD", "blind", "before VLKD"))
        if own is None:
            continue
        label = label.format(before=f"{before['value']:.3f}" if before else "·")
        mark = f'<i style="left: {blind["value"]:.1%}"></i>' if blind else ""
        bar = f'<span class="bar" style="--value: {own["value"]:.1%}">{mark}</span>'
        numbers = (
            f"{own['value']:.3f}",
            f"{own['low']:.3f}–{own['high']:.3f}",
            f"{blind['value']:.3f}" if blind else "·",
        )
        lines.append(f"<tr><td>{label}{bar}</td><td>{'</td><td>'.join(numbers)}</td></tr>")
    return f'<table class="summary">{"".join(lines)}</table>'


def _table(markdown: str) -> str:
    """A Markdown table as HTML."""
    header, _, *body = (html.escape(line)[2:-2].split(" | ") for line in markdown.splitlines())
    rows = "".join(f"<tr><td>{'</td><td>'.join(line)}</td></tr>" for line in body)
    return f"<table><tr><th>{'</th><th>'.join(header)}</th></tr>{rows}</table>"


def _section(name: str, cards: list[Card], split: str, folder: Path) -> str:
    articles = []
    for number, card in enumerate(cards):
        file = f"pictures/{name}-{number}.jpg"
        card.picture.save(folder / file, quality=88)
        caption = f"<p>{_said(card.caption)}</p>" if card.caption else ""
        answers = "".join(f"<li>{html.escape(question)} {_said(answer)}</li>" for question, answer in card.answers)
        image = f'<img src="{file}" alt="scene {number + 1}" loading="lazy">'
        articles.append(f"<article>{image}<div>{caption}<ul>{answers}</ul></div></article>")
    title, text = SECTIONS[name]
    return f'<h2>{title}</h2><p>{text.format(split=split)}</p><div class="cards">{"".join(articles)}</div>'


def _said(said: Said) -> str:
    truth = "" if said.right else f"<small>right: {html.escape(said.truth)}</small>"
    return f'<b class="{"right" if said.right else "wrong"}">{html.escape(str(said))}</b>{truth}'
