"""The model card of a trained model: the template, with the recipe and the figures that were measured."""

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from modeling_vlkd import VLKDConfig
from modeling_vlkd.card_vlkd import MARK, NO_FIGURES, NO_RECIPE, model_card
from trainer.recipe import load_recipe

NONE = "·"
FIGURE_KEYS = ("metric", "row", "condition", "value")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TASKS = {"vqa": "visual-question-answering", "text qa": "question-answering", "retrieval": "feature-extraction"}


def card_by_hand(folder: str | os.PathLike) -> str | None:
    """The README.md of a folder, if it is not one that `make_card` made."""
    readme = Path(folder, "README.md")
    text = readme.read_text(encoding="utf-8") if readme.is_file() else MARK
    return None if MARK in text else text


def make_card(
    folder: str | os.PathLike, config: VLKDConfig, repo_id: str, metrics: dict[str, Any] | None = None
) -> ModelCard:
    """The card of a model.

    Args:
        folder: of the model; its train.yaml is read.
        config: of the model.
        repo_id: where it goes: "user/name".
        metrics: what `load_metrics` gave, or None: then the card has no figure.
    """
    recipe, bases = load_recipe(folder), config.base_models
    if not bases and all(_is_hub_name(recipe.get(name)) for name in ("clip", "bart")):
        bases = [recipe["clip"], recipe["bart"]]
    text = model_card(
        config,
        repo_id,
        bases,
        recipe=recipe_section(recipe) if recipe else NO_RECIPE,
        evaluation=evaluation_section(metrics) if metrics else NO_FIGURES,
    )
    card = ModelCard(text)
    data = [recipe[name] for name in ("dataset", "text_dataset") if _is_hub_name(recipe.get(name))]
    card.data.datasets = data or None
    if metrics:
        card.data.model_name = repo_id.split("/")[-1]
        card.data.eval_results = eval_results(metrics)
    return card


def load_metrics(path: str | os.PathLike) -> dict[str, Any]:
    """What `path` says was measured: {"figures": [{"metric", "row", "condition", "value", …}, …], "split": …, …}.

    Raises:
        ValueError: it cannot be read, or a figure lacks a key or a number.
    """
    try:
        metrics = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"metrics: '{path}' cannot be read as JSON: {error}") from error
    figures = metrics.get("figures") if isinstance(metrics, dict) else None
    if not isinstance(figures, list) or not figures:
        raise ValueError(f"metrics: '{path}' holds no list of `figures`, as `make demo` writes it.")
    for number, figure in enumerate(figures):
        missing = [key for key in FIGURE_KEYS if key not in figure]
        if missing or not isinstance(figure["value"], (int, float)):
            what = f"has no {', '.join(missing)}" if missing else f"has value {figure['value']!r}, no number"
            raise ValueError(f"metrics: figures[{number}] of '{path}' {what}; measure again, or mend the file.")
    return metrics


def recipe_section(recipe: dict[str, Any]) -> str:
    """The recipe as a Markdown table."""
    lines = ["`vlkd train --config train.yaml`, with the `train.yaml` of this repository:", "", "| key | value |"]
    return "\n".join([*lines, "| --- | --- |", *(f"| {name} | `{value}` |" for name, value in recipe.items())])


def evaluation_section(metrics: dict[str, Any]) -> str:
    """The figures as a Markdown table: the model's, with interval and n, and the controls beside them."""
    conditions = list(dict.fromkeys(figure["condition"] for figure in metrics["figures"]))
    rows: dict[tuple[str, str], dict[str, dict]] = {}
    for figure in metrics["figures"]:
        rows.setdefault((figure["metric"], figure["row"]), {})[figure["condition"]] = figure
    lines = [["", conditions[0], "95% interval", "n", *conditions[1:]], ["---"] + ["---:"] * (len(conditions) + 2)]
    for (metric, row), found in rows.items():
        own = found.get(conditions[0], {})
        interval = f"{own['low']:.2f}–{own['high']:.2f}" if "low" in own and "high" in own else NONE
        n = str(next((figure["n"] for figure in found.values() if "n" in figure), NONE))
        values = [f"{found[name]['value']:.3f}" if name in found else NONE for name in conditions]
        lines.append([f"{metric}: {row}", values[0], interval, n, *values[1:]])
    of = " ".join(f"{name} `{metrics[name]}`" for name in ("dataset", "split", "recipe") if metrics.get(name))
    about = f"From `metrics.json` ({of}):" if of else "From `metrics.json`:"
    return "\n".join([about, "", *(f"| {' | '.join(line)} |" for line in lines)])


def eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """The model's own figures (the first condition's) for the Hub's `model-index`."""
    own = metrics["figures"][0]["condition"]
    return [
        EvalResult(
            task_type=next((task for name, task in TASKS.items() if name in metric.lower()), "image-to-text"),
            dataset_type=metrics.get("dataset", metric),
            dataset_name=metrics.get("dataset", metric),
            dataset_split=metrics.get("split"),
            metric_type="accuracy",
            metric_name=f"{metric}: {figure['row']}",
            metric_value=figure["value"],
            metric_args={key: figure[key] for key in ("n", "low", "high") if key in figure} or None,
        )
        for figure in metrics["figures"]
        if figure["condition"] == own
        for metric in [figure["metric"]]
    ]


def _is_hub_name(name: Any) -> bool:
    return isinstance(name, str) and bool(HUB_NAME.fullmatch(name)) and not os.path.exists(name)
