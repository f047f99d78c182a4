"""The plot of the study, in two of Okabe and Ito's colors, which color-blind readers can tell apart."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#6a737d"


def draw_differences(groups: dict[str, list[str]], measures: list[str], found: dict[tuple, Any], path: Path) -> None:
    """Differences to the recipe, one panel per measure; one whose interval includes 0 is gray and hollow.

    `groups`: heading -> rows; `found`: ("difference", measure, row) -> `Estimate`.
    """
    lines = [line for heading, rows in groups.items() for line in (heading, *rows)]
    figure = Figure(figsize=(11, 0.29 * len(lines) + 0.8), layout="constrained")
    for measure, axis in zip(measures, figure.subplots(1, len(measures), sharey=True), strict=True):
        axis.spines[:].set_visible(False)
        axis.grid(axis="x", color="#e4e7eb")
        axis.tick_params(colors=GRAY, labelsize=10, length=0)
        axis.axvline(0, color=GRAY, linewidth=1)
        for y, line in enumerate(lines):
            if line not in groups:
                value, margin, _ = found["difference", measure, line]
                color = GRAY if abs(value) <= margin else BLUE if value > 0 else ORANGE
                face = {"markerfacecolor": "white"} if color == GRAY else {}
                axis.errorbar(value, y, xerr=margin, fmt="o", color=color, linewidth=2, **face)
        axis.set(title=measure, axisbelow=True, facecolor="#f6f8fa")
        axis.set(ylim=(len(lines) - 0.4, -0.6), yticks=range(len(lines)))
        axis.locator_params(axis="x", nbins=3)
    for label in figure.axes[0].set_yticklabels(lines, fontsize=10, color="black"):
        label.set_fontweight("bold" if label.get_text() in groups else "normal")
    figure.savefig(path, dpi=150, facecolor="white")
