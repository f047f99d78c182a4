"""The demo's web page: index.html and its pictures, which need no network."""

import html
import re
from pathlib import Path
from string import Template
from typing import Any

import yaml

from microworld.demo.results import Card, Said
from microworld.drawings import ARTISTS, FOLDER, HELD_OUT_ARTIST, drawing
from trainer.evaluation.metrics_file import how_measured, interval, markdown_table

_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SUMMARY, SECTIONS = _TEXTS["summary"], _TEXTS["sections"]
_PAGE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
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
    """Write index.html and pictures/ into `folder`.

    Args:
        metrics: the content of metrics.json.
        sections: the cards of each of `SECTIONS`; the first is shown above the results.
    """
    artists = (*ARTISTS, HELD_OUT_ARTIST)
    attribution = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    sets = {match["artist"]: match.groupdict() for match in _ATTRIBUTION.finditer(attribution)}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for artist in artists:
        drawing("octopus", artist).save(folder / "pictures" / f"{artist}.png")
        sets[artist]["unseen"] = "unseen" if artist == HELD_OUT_ARTIST else ""
    first, *others = (_section(name, cards, metrics["split"], folder) for name, cards in sections.items())
    page = _PAGE.substitute(
        artists="".join(_ARTIST.substitute(sets[artist]) for artist in artists),
        summary=_summary(metrics["figures"]),
        table=_table(markdown_table(metrics["figures"])),
        measured=re.sub("`(.+?)`", r"<code>\1</code>", html.escape(how_measured(metrics))),
        first=first,
        sections="".join(others),
        credits="".join(_CREDIT.substitute(sets[artist]) for artist in artists),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _summary(figures: list[dict[str, Any]]) -> str:
    """The short table, with a bar for each figure."""
    found = {(figure["metric"], figure["row"], figure["condition"]): figure for figure in figures}
    lines = [_line(["", "VLKD", "95% interval", "blind"], "th")]
    for label, place in SUMMARY.items():
        own, blind, before = (found.get((*place, condition)) for condition in ("VLKD", "blind", "before VLKD"))
        if own:
            mark = f'<i style="left: {blind["value"]:.1%}"></i>' if blind else ""
            bar = f'<span class="bar" style="--value: {own["value"]:.1%}">{mark}</span>'
            lines.append(_line([label.format(before=_value(before)) + bar, _value(own), interval(own), _value(blind)]))
    return f'<table class="summary">{"".join(lines)}</table>'


def _value(figure: dict[str, Any] | None) -> str:
    return f"{figure['value']:.3f}" if figure else "·"


def _table(markdown: str) -> str:
    """A Markdown table as HTML."""
    header, _, *body = (html.escape(line)[2:-2].split(" | ") for line in markdown.splitlines())
    return f"<table>{_line(header, 'th')}{''.join(map(_line, body))}</table>"


def _line(cells: list[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>"


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
