"""The demo's table: figures by (metric, row) and condition, for the terminal, for Markdown and for JSON."""

from dataclasses import dataclass, field

from trainer.evaluation.metrics import Proportion

_NONE = "·"


@dataclass
class Figures:
    """Proportions in the order in which they were added."""

    rows: dict[tuple[str, str], dict[str, Proportion]] = field(default_factory=dict)
    conditions: list[str] = field(default_factory=list)

    def add(self, metric: str, condition: str, found: dict[str, Proportion]) -> None:
        """Add one condition's figures of a metric: `found` maps the name of a row to its figure."""
        if condition not in self.conditions:
            self.conditions.append(condition)
        for row, figure in found.items():
            self.rows.setdefault((metric, row), {})[condition] = figure

    def as_list(self) -> list[dict]:
        """One record a figure: metric, row, condition, value, n, low and high (95% interval)."""
        return [
            {"metric": metric, "row": row, "condition": condition, **figure.as_dict()}
            for (metric, row), found in self.rows.items()
            for condition, figure in found.items()
        ]


def _cells(figures: Figures) -> list[list[str]]:
    """Header and body as text: the first condition with its interval, the controls without."""
    first, *others = figures.conditions
    lines = [["", first, "95% interval", "n", *others]]
    for (metric, row), found in figures.rows.items():
        main = found[first] if first in found else None
        interval = f"{main.low:.2f}–{main.high:.2f}" if main else _NONE
        n = str(next(iter(found.values())).n)
        others_text = [f"{found[c].value:.3f}" if c in found else _NONE for c in others]
        lines.append([f"{metric}: {row}", f"{main.value:.3f}" if main else _NONE, interval, n, *others_text])
    return lines


def terminal_table(figures: Figures) -> str:
    """Columns lined up by spaces."""
    lines = _cells(figures)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(figures: Figures) -> str:
    """A GitHub table."""
    header, *body = _cells(figures)
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *body)) + "\n"
