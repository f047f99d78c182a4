"""Pictures of a training run."""

import json
from pathlib import Path

from matplotlib.figure import Figure

_TERMS = {
    "ttdm": "TTDM: ‖s − t‖²",
    "itcl": "ITCL: image-text cross-entropy",
    "icti": "ICTI: caption cross-entropy",
    "itdd": "ITDD: decoder at image and at caption",
}


def plot_training(trainer_state: Path, path: Path) -> None:
    """Draw every raw loss term that a run logged over its steps, one panel a term; evaluation as dots.

    Args:
        trainer_state: the `trainer_state.json` of a run.

    Raises:
        ValueError: if the run logged no loss term.
    """
    history = json.loads(trainer_state.read_text(encoding="utf-8"))["log_history"]
    terms = [term for term in _TERMS if any(term in line for line in history)]
    if not terms:
        raise ValueError(f"{trainer_state} holds no loss term: set logging_steps below the number of steps.")
    figure = Figure(figsize=(4.2 * len(terms), 3.4), layout="constrained")
    axes = figure.subplots(1, len(terms), squeeze=False)
    for axis, term in zip(axes.flat, terms, strict=True):
        axis.plot(*_series(history, term), ".-", markersize=3, color="#0969da", label="training")
        steps, values = _series(history, f"eval_{term}")
        if steps:
            axis.plot(steps, values, "o", color="#cf222e", label="evaluation")
            axis.legend(frameon=False)
        axis.set(title=_TERMS[term], xlabel="step", ylim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def _series(history: list[dict], key: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in history if key in line], [line[key] for line in history if key in line]
