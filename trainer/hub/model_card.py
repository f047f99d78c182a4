"""The model card: a template filled with the configuration of the run and the metrics."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from modeling_vlkd import VLKDConfig
from modeling_vlkd.card_vlkd import MARK, NO_RECIPE, NO_RESULTS, model_card
from trainer.evaluation.metrics_file import markdown_report
from trainer.hub.train_config import load_train_config, published

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TASKS = {"vqa": "visual-question-answering", "text qa": "question-answering", "retrieval": "feature-extraction"}


def handwritten_card(folder: str | os.PathLike) -> str | None:
    """The README.md of a folder, unless `make_card` made it."""
    readme = Path(folder, "README.md")
    text = readme.read_text(encoding="utf-8") if readme.is_file() else MARK
    return None if MARK in text else text


def make_card(
    folder: str | os.PathLike, config: VLKDConfig, repo_id: str, metrics: dict[str, Any] | None = None
) -> ModelCard:
    """The card of a model.

    Args:
        folder: folder of the model and its train.yaml.
        config: config of the model.
        repo_id: "user/name".
        metrics: the result of `load_metrics`; None for a card without results.
    """
    run = published(load_train_config(folder))
    text = model_card(
        config,
        repo_id,
        config.base_models,
        recipe=training_section(run) if run else NO_RECIPE,
        evaluation=evaluation_section(metrics) if metrics else NO_RESULTS,
    )
    card = ModelCard(text)
    named = run.get("dataset_name") or []
    named = [named] if isinstance(named, str) else named
    card.data.datasets = [name for name in named if HUB_NAME.fullmatch(name) and not os.path.exists(name)] or None
    if metrics:
        card.data.model_name = repo_id.split("/")[-1]
        card.data.eval_results = eval_results(metrics)
    return card


def training_section(run: dict[str, Any]) -> str:
    """The configuration of a run as a Markdown table."""
    lines = ["`vlkd train --config train.yaml`, with the `train.yaml` of this repository:", "", "| key | value |"]
    return "\n".join([*lines, "| --- | --- |", *(f"| {name} | `{value}` |" for name, value in run.items())])


def evaluation_section(metrics: dict[str, Any]) -> str:
    """The metrics as a Markdown table: the model's, with interval and n, next to the controls."""
    of = " ".join(f"{name} `{metrics[name]}`" for name in ("dataset", "split", "recipe", "task") if metrics.get(name))
    return f"From `metrics.json` ({of}):\n\n{markdown_report(metrics)}"


def eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """The results of the first condition, which is the model's own, for the Hub's `model-index`."""
    own = metrics["figures"][0]["condition"]
    return [
        EvalResult(
            task_type=TASKS.get(figure["metric"].lower(), "image-to-text"),
            dataset_type=metrics["dataset"],
            dataset_name=metrics["dataset"],
            dataset_split=metrics["split"],
            metric_type=figure["metric"],
            metric_name=f"{figure['metric']}: {figure['row']}",
            metric_value=figure["value"],
            metric_args={key: figure[key] for key in ("n", "low", "high")},
        )
        for figure in metrics["figures"]
        if figure["condition"] == own
    ]
