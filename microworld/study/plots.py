"""The plots of the study, in Okabe and Ito's colors, which color-blind readers can tell apart."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GRAY = COLORS = ("#0072b2", "#d55e00", "#009e73", "#6a737d")


def draw_differences(groups: dict[str, list[str]], measures: list[str], found: dict[tuple, Any], path: Path) -> None:
    """Differences to the recipe, one panel per measure; one whose interval includes 0 is gray and hollow.

    `groups`: heading -> rows; `found`: ("difference", measure, row) -> `Estimate`.
    """
    lines = [line for heading, rows in groups.items() for line in (heading, *rows)]
    figure = Figure(figsize=(11, 0.29 * len(lines) + 0.8), layout="constrained")
    for measure, axis in zip(measures, figure.subplots(1, len(measures), sharey=True), strict=True):
        _clean(axis, "x")
        axis.axvline(0, color=GRAY, linewidth=1)
        axis.set_title(measure, fontsize=11)
        for y, line in enumerate(lines):
            if line not in groups:
                value, margin, _ = found["difference", measure, line]
                color = GRAY if abs(value) <= margin else BLUE if value > 0 else ORANGE
                face = "white" if color == GRAY else color
                axis.errorbar(value, y, xerr=margin, fmt="o", color=color, markerfacecolor=face, linewidth=2)
        axis.set(ylim=(len(lines) - 0.4, -0.6), yticks=range(len(lines)))
    for label in figure.axes[0].set_yticklabels(lines, fontsize=10, color="black"):
        label.set_fontweight("bold" if label.get_text() in groups else "normal")
    figure.savefig(path, dpi=150, facecolor="white")


def draw_curves(x: list[float], panels: list[dict[str, list[Any]]], label: str, path: Path) -> None:
    """Measures with their intervals over `x`, in ascending order, on a logarithmic axis.

    `panels`, from top to bottom: measure -> an `Estimate` for each x.
    """
    figure = Figure(figsize=(9, 1.6 + 2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, curves in zip(axes, panels, strict=True):
        _clean(axis, "y")
        by_height = sorted(curves.items(), key=lambda curve: -curve[1][-1].value)  # as the legend lists them
        for (measure, found), color in zip(by_height, COLORS, strict=False):
            values, margins = [each.value for each in found], [each.margin for each in found]
            axis.errorbar(x, values, yerr=margins, fmt="o-", color=color, linewidth=2, elinewidth=1.5, label=measure)
        if len(curves) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=11, labelcolor="linecolor")
        else:
            axis.set_title(measure, fontsize=11, loc="left")
    axes[-1].set(xscale="log", xlabel=label)
    ticks = [f"{value:,}" if isinstance(value, int) else f"{value:.0e}".replace("e-0", "e-") for value in x]
    axes[-1].set_xticks(x, ticks)
    axes[-1].minorticks_off()
    figure.savefig(path, dpi=180, facecolor="white")


def _clean(axis: Axes, values: str) -> None:
    """No frame, and a light grid across the axis of the values."""
    axis.spines[:].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis=values, color="#e4e7eb")
    axis.tick_params(colors=GRAY, labelsize=10, length=0)
