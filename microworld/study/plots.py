"""The study's pictures, for a light and for a dark page, in Okabe and Ito's colours, which all eyes tell apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from microworld.study.results import Estimate, Results
from microworld.study.rows import BY_NAME, IMAGES

DPI = 160
WIDTH = 8.0  # inches
KEY = {"bbox_to_anchor": (-0.01, 1), "handlelength": 0.8, "handleheight": 0.8, "borderpad": 0, "columnspacing": 1.6}
NAMES = {  # the measures that are drawn, as the pictures and tables call them
    "VQA: all": "VQA",
    "captions: right": "true captions",
    "retrieval R@1: text to image": "text-to-image retrieval",
    "text QA: all": "text QA",
}
TYPES = {  # rows of the VQA table, in the order in which they are drawn
    "all": "all",
    "background": "background",
    "size": "size",
    "shape": "shape",
    "color": "colour",
    "count": "count",
    "relation": "relation",
    "yes/no": "yes / no",
    "one group": "one group",
    "two groups": "two groups",
}


@dataclass(frozen=True)
class Theme:
    suffix: str
    page: str
    ink: str
    muted: str
    grid: str
    blue: str
    orange: str
    green: str


THEMES = (
    Theme("", "#ffffff", "#1c2128", "#6a737d", "#e4e7eb", "#0072b2", "#d55e00", "#009e73"),
    Theme("-dark", "#14171c", "#e6e8eb", "#98a1ab", "#2b3038", "#56b4e9", "#f0863c", "#35c796"),
)


def draw_differences(results: Results, groups: dict[str, list[str]], theme: Theme, path: Path) -> None:
    """Each row's difference from what it is compared with, by measure: the whole study at a glance.

    Args:
        groups: heading -> names of rows.
    """
    lines = [line for heading, names in groups.items() for line in (heading, *names)]
    height = 0.27 * len(lines) + 0.9
    figure = _figure(1.35 * WIDTH, height, theme)
    axes = figure.subplots(1, len(NAMES), sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    for axis, (measure, name) in zip(axes, NAMES.items(), strict=True):
        _quiet(axis, theme)
        axis.axvline(0, color=theme.muted, linewidth=1)
        axis.set_title(name, fontsize=9.5, color=theme.ink, loc="center", pad=8)
        for y, line in enumerate(lines):
            if line not in groups:
                found = results.difference(line, BY_NAME[line].against, measure)
                _point(axis, found, y, _verdict(found, theme), theme, hollow=not found.is_apart_from_zero)
        axis.set_ylim(len(lines) - 0.4, -0.6)
        axis.xaxis.set_major_locator(MultipleLocator(0.5))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0")
    _label_rows(axes[0], [BY_NAME[line].label if line not in groups else line for line in lines], theme)
    for text, line in zip(axes[0].get_yticklabels(), lines, strict=True):
        if line in groups:
            text.set(fontweight="bold", color=theme.ink)
    _save(figure, path, theme)


def draw_rows(results: Results, names: Sequence[str], measures: Sequence[str], theme: Theme, path: Path) -> None:
    """Rows as points with intervals, a panel a measure; a line marks the first row, with which they are compared."""
    figure = _figure(WIDTH, 0.46 * len(names) + 0.6, theme)
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, measures, strict=True):
        _quiet(axis, theme)
        found = [results.of(name, measure) for name in names]
        axis.axvline(found[0].value, color=theme.blue, linewidth=1, linestyle=(0, (2, 2)), alpha=0.7)
        for y, each in enumerate(found):
            _point(axis, each, y, theme.blue if y == 0 else theme.orange, theme)
            _note(axis, f"{each.value:.2f}", (each.value, y), (0, 10), theme.ink, theme, size=8)
        axis.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.45, -0.7), xticks=(0, 0.5, 1))
        axis.set_title(NAMES[measure], fontsize=9.5, color=theme.ink, pad=6)
    _label_rows(axes[0], [BY_NAME[name].label for name in names], theme)
    _save(figure, path, theme)


def draw_types(results: Results, theme: Theme, path: Path) -> None:
    """Exact match by type of question: the two recipes, and the paper's without the image."""
    figure = _figure(WIDTH, 3.3, theme)
    axis = figure.subplots()
    _quiet(axis, theme, values="y")
    bars = [("blind", "paper", "blind VQA", theme.muted), ("the paper's recipe", "paper", "VQA", theme.blue)]
    if results.has("ours"):
        bars.append(("our recipe", "ours", "VQA", theme.green))
    width = 0.8 / len(bars)
    for i, (label, name, metric, color) in enumerate(bars):
        for x, kind in enumerate(TYPES):
            found = results.of(name, f"{metric}: {kind}")
            at = x + (i - (len(bars) - 1) / 2) * width
            bar = axis.bar(at, found.value, width * 0.92, color=color, alpha=0.9 if i else 0.45)
            axis.plot([at, at], [found.low, found.high], color=theme.ink, linewidth=1)
        bar.set_label(label)
    axis.set_xticks(range(len(TYPES)), list(TYPES.values()), fontsize=9, color=theme.ink)
    axis.set(ylim=(0, 1.02), yticks=(0, 0.5, 1), xlim=(-0.6, len(TYPES) - 0.4))
    axis.tick_params(axis="x", length=0)
    axis.legend(ncols=len(bars), frameon=False, fontsize=9, labelcolor=theme.ink, loc="lower left", **KEY)
    _save(figure, path, theme)


def draw_learning_rate(results: Results, names: Sequence[str], chosen: str, theme: Theme, path: Path) -> None:
    """VQA and questions about plain text over BART's learning rate; what validation chose is ringed."""
    rates = {name: _option(results, name, "learning_rate") for name in names}
    figure = _figure(WIDTH, 3.6, theme)
    axis = figure.subplots()
    _quiet(axis, theme, values="y")
    axis.set_xscale("log")
    ordered, ends = sorted(names, key=rates.get), []
    for measure, color in (("VQA: all", theme.blue), ("text QA: all", theme.orange)):
        _curve(axis, [rates[name] for name in ordered], [results.of(name, measure) for name in ordered], color)
        ends.append((results.of(ordered[-1], measure).value, NAMES[measure], color))
    _label_ends(axis, rates[ordered[-1]], ends)
    ring = results.of(chosen, "VQA: all").value
    axis.plot(rates[chosen], ring, "o", markersize=13, fillstyle="none", color=theme.ink, markeredgewidth=1.2)
    _note(axis, "chosen on validation", (rates[chosen], ring), (0, -17), theme.ink, theme)
    axis.set_xticks([rates[name] for name in ordered], [f"{rates[name]:.0e}".replace("e-0", "e-") for name in ordered])
    axis.minorticks_off()
    axis.set(ylim=(0, 1.06), yticks=(0, 0.5, 1), xlim=(rates[ordered[0]] * 0.7, rates[ordered[-1]] * 8))
    axis.set_xlabel("BART's learning rate", color=theme.muted, fontsize=9, loc="left")
    _save(figure, path, theme)


def draw_images(results: Results, names: Sequence[str], theme: Theme, path: Path) -> None:
    """What is learnt of 1%, 10% and all of the images; below, what is known without any."""
    sizes = {name: _option(results, name, "dataset_kwargs")["size"] for name in names}
    ordered, ends = sorted(names, key=sizes.get), []
    figure = _figure(WIDTH, 3.5, theme)
    axis = figure.subplots()
    _quiet(axis, theme, values="y")
    axis.set_xscale("log")
    for measure, color in (
        ("VQA: all", theme.blue),
        ("captions: right", theme.orange),
        ("retrieval R@1: text to image", theme.green),
        ("blind VQA: all", theme.muted),
    ):
        found = [results.of(name, measure) for name in ordered]
        _curve(axis, [sizes[name] for name in ordered], found, color)
        ends.append((found[-1].value, NAMES.get(measure, "VQA without the image"), color))
    _label_ends(axis, sizes[ordered[-1]], ends)
    in_order = [sizes[name] for name in ordered]
    axis.set_xticks(in_order, [f"{size:,}\n{size / IMAGES:.0%}" for size in in_order])
    axis.minorticks_off()
    axis.set(ylim=(0, 1.06), yticks=(0, 0.5, 1), xlim=(sizes[ordered[0]] * 0.7, sizes[ordered[-1]] * 6))
    axis.set_xlabel("images with captions", color=theme.muted, fontsize=9, loc="left")
    _save(figure, path, theme)


def _option(results: Results, name: str, key: str):
    return next(iter(results.runs[name].values()))["settings"]["options"][key]


def _figure(width: float, height: float, theme: Theme) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor=theme.page)


def _quiet(axis: Axes, theme: Theme, values: str = "x") -> None:
    """No frame; a faint grid across the axis that holds the values."""
    axis.set_facecolor(theme.page)
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis=values, color=theme.grid, linewidth=0.8)
    axis.tick_params(colors=theme.muted, labelsize=8.5, length=0)


def _point(axis: Axes, found: Estimate, y: float, color: str, theme: Theme, hollow: bool = False) -> None:
    axis.plot([found.low, found.high], [y, y], color=color, linewidth=2, solid_capstyle="round")
    axis.plot(found.value, y, "o", markersize=6, color=color, markerfacecolor=theme.page if hollow else color)


def _verdict(found: Estimate, theme: Theme) -> str:
    if not found.is_apart_from_zero:
        return theme.muted
    return theme.blue if found.value > 0 else theme.orange


def _label_rows(axis: Axes, labels: list[str], theme: Theme) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(axis="y", labelsize=9, labelcolor=theme.ink)


def _curve(axis: Axes, x: list[float], found: list[Estimate], color: str) -> None:
    axis.plot(x, [each.value for each in found], "o-", color=color, markersize=5, linewidth=2)
    axis.fill_between(x, [each.low for each in found], [each.high for each in found], color=color, alpha=0.15, lw=0)


def _label_ends(axis: Axes, x: float, ends: list[tuple[float, str, str]], gap: float = 0.065) -> None:
    """Each curve's name beside its last point (value, name, colour), moved apart where they would overlap."""
    at = -1.0
    for value, text, color in sorted(ends):
        at = max(value, at + gap)
        axis.annotate(text, (x, at), (9, 0), textcoords="offset points", va="center", fontsize=9, color=color)


def _note(
    axis: Axes,
    text: str,
    at: tuple[float, float],
    away: tuple[float, float],
    color: str,
    theme: Theme,
    size: float = 8.5,
) -> None:
    """A word so many points away from what it speaks of; lines behind it are covered."""
    behind = {"facecolor": theme.page, "edgecolor": "none", "pad": 0.6}
    axis.annotate(
        text, at, away, textcoords="offset points", ha="center", va="center", fontsize=size, color=color, bbox=behind
    )


def _save(figure: Figure, path: Path, theme: Theme) -> None:
    figure.savefig(path.with_name(f"{path.stem}{theme.suffix}.png"), dpi=DPI, facecolor=theme.page)
