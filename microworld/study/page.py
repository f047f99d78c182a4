"""The study's report: docs/study.html, docs/study.md, docs/study.json and the pictures in docs/study/."""

import html
import json
from dataclasses import dataclass
from pathlib import Path

from microworld.study.plots import THEMES, draw_differences
from microworld.study.results import Estimate, Results, as_json
from microworld.study.rows import BY_NAME, RECIPES
from microworld.study.sections import Section, glance, present
from microworld.study.words import TEXT, VQA, interval, number, summary

COLUMNS = {
    "VQA: all": "VQA",
    "VQA: two groups": "two groups",
    "VQA: yes/no": "yes / no",
    "VQA: relation": "relation",
    "VQA: knowledge, never two-step": "knowledge, never two-step",
    "blind VQA: all": "VQA, blind",
    "captions: right": "true captions",
    "retrieval R@1: text to image": "R@1, text to image",
    "retrieval R@1: image to text": "R@1, image to text",
    "text QA: all": "text QA",
}
DOT = "·"
GLANCE = (
    "Each row's difference from what it is compared with: further right is better. Blue rises, orange falls; a hollow "
    "grey point cannot be told from no difference at all."
)
ASKED = (
    "VLKD joins a frozen CLIP and a BART by training on images with captions alone. The paper claims that the result "
    "answers questions about images, and still is a language model. Here its recipe, ours, and each of their parts "
    "are tried in an embedded miniature world of coloured shapes, every one with several seeds."
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The paper’s study in miniature</title>
<style>
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2128; --muted: #5d6670; --line: #e4e7eb; --soft: #f5f7f9;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --ink: #e6e8eb; --muted: #98a1ab; --line: #2b3038; --soft: #1c2027; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.25rem 4rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
header, section, nav, footer { max-width: 46rem; margin-inline: auto; }
section.wide, .numbers { max-width: none; }
section { margin-top: 3.5rem; }
.kicker { margin: 0; color: var(--accent); font-size: .85rem; font-weight: 600; letter-spacing: .04em; }
h1 { margin: .3rem 0 1rem; font-size: clamp(2rem, 5vw, 2.9rem); line-height: 1.12; letter-spacing: -.02em; }
h2 { margin: 0 0 .5rem; font-size: 1.5rem; line-height: 1.25; letter-spacing: -.01em; text-wrap: balance; }
section.wide > h2, section.wide > .about { max-width: 46rem; margin-inline: auto; }
.lead { font-size: 1.15rem; }
.notice { padding: .7rem 1rem; background: var(--soft); border-left: 3px solid var(--accent); font-size: .93rem; }
.about { color: var(--muted); margin: 0 auto .9rem; }
.answer { margin: 0 0 1.2rem; } .answer b { font-weight: 600; }
ul { padding-left: 1.2rem; } li { margin: .45rem 0; } li::marker { color: var(--accent); }
.method { font-size: .95rem; color: var(--muted); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 2.5rem 0; }
.numbers div { padding: 1.1rem 1.2rem; background: var(--soft); border-radius: 12px; display: grid;
  align-content: start; }
.numbers b { font-size: 2.3rem; line-height: 1.1; letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.numbers small { color: var(--muted); } .numbers span { margin-top: .5rem; font-size: .93rem; }
nav { margin-top: 3rem; display: grid; border-top: 1px solid var(--line); }
nav a { padding: .55rem 0; color: inherit; text-decoration: none; border-bottom: 1px solid var(--line); }
nav a::after { content: "↓"; float: right; color: var(--muted); } nav a:hover { color: var(--accent); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto 1.2rem; }
.scroll { overflow-x: auto; }
@media (max-width: 40rem) { picture { display: block; overflow-x: auto; } img { max-width: none; width: 40rem; } }
table { border-collapse: collapse; margin-inline: auto; min-width: 100%; font-size: .9rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
td small { display: block; color: var(--muted); font-size: .78rem; white-space: nowrap; }
td i { color: var(--accent); font-style: normal; font-weight: 700; }
code { font: .88em/1 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--soft); padding: .1em .3em;
  border-radius: 4px; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--muted);
  font-size: .9rem; }
</style></head><body>
BODY
</body></html>
"""


@dataclass(frozen=True)
class Cell:
    """What a table's cell says, with the interval in small print, and whether it was chosen."""

    text: str
    small: str = ""
    is_chosen: bool = False


Table = list[list[Cell]]  # the first line is the header


def write_report(results: Results, docs: Path, command: str) -> str:
    """Write everything; returns a line that says where."""
    pictures = docs / "study"
    pictures.mkdir(parents=True, exist_ok=True)
    for theme in THEMES:
        if groups := glance(results):
            draw_differences(results, groups, theme, pictures / "glance.png")
        for section, names in present(results):
            section.draw(results, names, theme, pictures / f"{section.name}.png")
    figures = json.dumps(as_json(results, command), indent=1, ensure_ascii=False)
    (docs / "study.json").write_text(figures + "\n", encoding="utf-8")
    (docs / "study.md").write_text(markdown(results, command), encoding="utf-8")
    (docs / "study.html").write_text(page(results, command), encoding="utf-8")
    missing = f" Not complete: {', '.join(results.missing)}." if results.missing else ""
    return f"The report: {docs / 'study.html'}, study.md, study.json and study/*.png.{missing}"


# ---- what is said, for both forms
def shortened(results: Results) -> str:
    return (
        f"A shortened schedule, not the README's figures: every row trains {results.steps} steps, and each split's "
        f"exam has {results.scenes} scenes. A miniature's figures say nothing of photographs."
    )


def method(results: Results) -> list[str]:
    """How the figures came about, and what they cannot say."""
    asked = results.of(next(iter(results.runs)), VQA).n
    recipes = ", ".join(f"{name} (`{path}`)" for name, path in RECIPES.items())
    said = [
        f"Every row is `vlkd train` by one of two recipes, {recipes}, with a few keys changed: "
        "`microworld/study/rows.py`. The learning rate's warmup keeps its share of the shortened schedule.",
        f"Up to {results.seeds} seeds a row. A seed draws the maps' start, the order of the data, captions and "
        "corruptions, and the weights of the random BART. Teachers, training images and exam are the same for all.",
        f"The exam asks {asked:,} questions of {results.scenes} scenes a split, judged by exact match; a caption is "
        "true if it names every object and says nothing false; retrieval is among 100. Blind is the same model "
        "without the image. The change in text QA is against BART before any training.",
        "What has to be chosen is chosen on validation (✓); every other figure is of the test split.",
        "Intervals are 95%, of a mean over seeds. The squared standard error is the variance between seeds over their "
        "number plus the variance between scenes over theirs; Student's t takes Satterthwaite's degrees of freedom. "
        "Rows are compared seed by seed and scene by scene, each with the interval of the difference. What never "
        "varied has an interval of no width.",
        "No interval is widened for the number of comparisons: of twenty parts that do nothing, one would seem to.",
        "A part is tried alone, at the learning rates and the other choices of its recipe: two that fail alone may "
        "work together, and a schedule this short favours what learns fast.",
        "Seconds and samples per second are of training alone, one thread, with other runs beside it.",
    ]
    return said + ([f"Not complete: {', '.join(results.missing)}."] if results.missing else [])


def made_by(results: Results, command: str) -> str:
    return f"Made by `{command}` on commit {', '.join(f'`{name}`' for name in results.commits)}."


def section_table(results: Results, section: Section, names: list[str]) -> Table:
    """The section's rows; where one has to be chosen, with the validation figure by which it was."""
    choice = [name for name in section.choice if name in names]
    best = results.best(choice) if choice else None
    header = ["", *(["VQA, validation"] if choice else []), *(COLUMNS[measure] for measure in section.measures)]
    table = [[Cell(text) for text in header]]
    for name in names:
        line = [Cell(BY_NAME[name].label)]
        if choice:
            line.append(_cell(results.of(name, VQA, "validation"), is_chosen=name == best))
        table.append(line + [_cell(results.of(name, measure)) for measure in section.measures])
    return table


def full_table(results: Results) -> Table:
    """Every row with every measure."""
    table = [[Cell(name) for name in ("", *COLUMNS.values(), "change in text QA", "train s", "samples/s")]]
    for name in results.runs:
        line = [Cell(BY_NAME[name].label), *(_cell(results.of(name, measure)) for measure in COLUMNS)]
        has_before = results.has("untrained") and name != "untrained"
        line.append(_cell(results.difference(name, "untrained", TEXT), sign=True) if has_before else Cell(DOT))
        line.append(Cell(f"{results.mean(name, 'train_seconds'):.0f}"))
        table.append([*line, Cell(f"{results.mean(name, 'samples_per_second'):.0f}")])
    return table


def _cell(found: Estimate, sign: bool = False, is_chosen: bool = False) -> Cell:
    return Cell(number(found.value, sign), interval(found, sign).replace(" to ", " … " if sign else "–"), is_chosen)


# ---- Markdown
def markdown(results: Results, command: str) -> str:
    parts = ["# The paper's study in miniature", ASKED, shortened(results), made_by(results, command)]
    parts += ["## In short", "\n".join(f"- {point}" for point in summary(results))]
    if glance(results):
        parts += [GLANCE, _markdown_picture("glance", "Differences of all rows")]
    for section, names in present(results):
        first, *rest = section.answer(results, names)
        parts += [f"## {section.title}", section.about, f"**{first}** {' '.join(rest)}".strip()]
        parts += [_markdown_picture(section.name, section.title)]
        parts += [_markdown_table(section_table(results, section, names))]
    parts += ["## All figures", _markdown_table(full_table(results))]
    parts += ["## Method and limits", "\n".join(f"- {text}" for text in method(results))]
    return "\n\n".join(parts) + "\n"


def _markdown_picture(name: str, alt: str) -> str:
    return f"![{alt}](study/{name}.png)"


def _markdown_table(table: Table) -> str:
    header, *body = table
    lines = [[cell.text for cell in header], ["---", *["---:"] * (len(header) - 1)]]
    for line in body:
        lines.append([_markdown_cell(cell) for cell in line])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    return f"{cell.text}{f' ({cell.small})' if cell.small else ''}{' ✓' if cell.is_chosen else ''}"


# ---- the page
def page(results: Results, command: str) -> str:
    """One file that needs nothing but the pictures beside it."""
    sections = list(present(results))
    links = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section, _ in sections)
    body = [
        "<header><p class=kicker>VLKD on the microworld</p><h1>The paper’s study in miniature</h1>",
        f"<p class=lead>{html.escape(ASKED)}</p><p class=notice>{html.escape(shortened(results))}</p></header>",
        _numbers(results),
        "<section><h2>In short</h2><ul>",
        *(f"<li>{html.escape(point)}</li>" for point in summary(results)),
        "</ul></section>",
        _glance(results),
        f"<nav aria-label=Questions>{links}</nav>",
    ]
    for section, names in sections:
        first, *rest = section.answer(results, names)
        body += [
            f"<section id={section.name}><h2>{html.escape(section.title)}</h2>",
            f"<p class=about>{html.escape(section.about)}</p>",
            f"<p class=answer><b>{html.escape(first)}</b> {html.escape(' '.join(rest))}</p>",
            _picture(section.name, section.title),
            _table(section_table(results, section, names)),
            "</section>",
        ]
    said = "".join(f"<li>{_with_code(text)}</li>" for text in method(results))
    body += [
        f"<section class=wide><h2>All figures</h2><p class=about>On the test split.</p>{_table(full_table(results))}",
        f"</section><section><h2>Method and limits</h2><ul class=method>{said}</ul></section>",
        f"<footer>{_with_code(made_by(results, command))}</footer>",
    ]
    return _PAGE.replace("BODY", "\n".join(body))


def _glance(results: Results) -> str:
    if not glance(results):
        return ""
    picture = _picture("glance", "Differences of all rows")
    return f"<section class=wide><h2>At a glance</h2><p class=about>{html.escape(GLANCE)}</p>{picture}</section>"


def _numbers(results: Results) -> str:
    """The few figures that stand above everything else."""
    shown = [("VQA, the paper’s recipe", "paper", VQA), ("VQA, our recipe", "ours", VQA)]
    shown += [("the paper’s without the image", "paper", "blind VQA: all"), ("text QA after training", "paper", TEXT)]
    cards = "".join(
        f"<div><b>{number(found.value)}</b><small>{interval(found)}</small><span>{label}</span></div>"
        for label, name, measure in shown
        if results.has(name)
        for found in [results.of(name, measure)]
    )
    return f"<div class=numbers>{cards}</div>"


def _picture(name: str, alt: str) -> str:
    return (
        f'<picture><source srcset="study/{name}-dark.png" media="(prefers-color-scheme: dark)">'
        f'<img src="study/{name}.png" alt="{html.escape(alt)}" loading=lazy></picture>'
    )


def _table(table: Table) -> str:
    header, *body = table
    head = "".join(f"<th scope=col>{html.escape(cell.text)}</th>" for cell in header)
    rows = "".join(f"<tr>{''.join(map(_table_cell, line))}</tr>" for line in body)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"


def _table_cell(cell: Cell) -> str:
    mark = " <i title='chosen on validation'>✓</i>" if cell.is_chosen else ""
    small = f"<small>{html.escape(cell.small)}</small>" if cell.small else ""
    return f"<td>{html.escape(cell.text)}{mark}{small}</td>"


def _with_code(text: str) -> str:
    """`code` between backticks."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
