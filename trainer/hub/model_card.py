"""The model card: the template, filled with the configuration of the run and the metrics."""

import json
import os
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from modeling_vlkd import VLKDConfig
from modeling_vlkd.card_vlkd import MARK, NO_RECIPE, NO_RESULTS, model_card
from trainer.evaluation.metrics_file import markdown_report
from trainer.hub.train_config import is_hub_name, load_train_config, published
from trainer.inference.backends import MANIFEST

METRIC_TYPES = {name: name for name in ("cider", "bleu", "meteor", "rouge", "spice", "f1", "loss")} | {"r@": "recall"}
USAGE = "## How to use\n"
EXPORT_USAGE = Template("""\
## How to use

This is an export for $library. It needs the package `vlkd` with the extra `$format`, and runs on a CPU:

```bash
vlkd caption photo.png --model $repo_id
vlkd ask photo.png "what is in the picture?" --model $repo_id
```

```python
from transformers import pipeline
from vlkd import VLKDExportedModel, VLKDProcessor

model = VLKDExportedModel.from_pretrained("$repo_id")
processor = VLKDProcessor.from_pretrained("$repo_id")
captioner = pipeline("image-to-text", model=model, processor=processor, device="cpu")
print(captioner("photo.png", max_new_tokens=40)[0]["generated_text"])
```

For use without Python, `docs/export.md` of `vlkd` describes the five programs and the decoding loop.
""")
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
        folder: of the model, with its train.yaml.
        config: of the model.
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
    if Path(folder, MANIFEST).is_file():
        describe_export(card, folder, repo_id)
    named = run.get("dataset_name")
    named = named if isinstance(named, list) else [named]
    card.data.datasets = [name for name in named if is_hub_name(name)] or None
    if metrics:
        card.data.model_name = repo_id.split("/")[-1]
        card.data.eval_results = eval_results(metrics)
    return card


def describe_export(card: ModelCard, folder: str | os.PathLike, repo_id: str) -> None:
    """Replace the card's section on use by the one of an export."""
    export_format = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))["export_format"]
    library = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[export_format]
    usage = EXPORT_USAGE.substitute(repo_id=repo_id, format=export_format, library=library)
    before, _, rest = card.text.partition(USAGE)
    card.text = before + usage + rest[rest.index("\n## ") :]
    card.data.library_name = export_format
    card.data.tags = [*card.data.tags, export_format]


def training_section(run: dict[str, Any]) -> str:
    """The configuration of a run as a Markdown table."""
    how = "`vlkd train --config train.yaml`, with the `train.yaml` of this repository, on images with captions alone:"
    lines = [how, "", "| key | value |"]
    return "\n".join([*lines, "| --- | --- |", *(f"| {name} | `{value}` |" for name, value in run.items())])


def evaluation_section(metrics: dict[str, Any]) -> str:
    """The metrics as a Markdown table: the model's, with interval and n, next to the controls."""
    of = " ".join(f"{name} `{metrics[name]}`" for name in ("dataset", "split", "recipe", "task") if metrics.get(name))
    return f"From `metrics.json` ({of}):\n\n{markdown_report(metrics)}"


def eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """The model's own results (of the first condition) for the Hub's `model-index`."""
    own = metrics["figures"][0]["condition"]

    def kind(kinds: dict[str, str], text: str, otherwise: str) -> str:
        return next((kind for name, kind in kinds.items() if name in text.lower()), otherwise)

    return [
        EvalResult(
            task_type=kind(TASKS, metric, "image-to-text"),
            dataset_type=metrics["dataset"],
            dataset_name=metrics["dataset"],
            dataset_split=metrics["split"],
            metric_type=kind(METRIC_TYPES, f"{metric}: {figure['row']}", "accuracy"),
            metric_name=f"{metric}: {figure['row']}",
            metric_value=figure["value"],
            metric_args={key: figure[key] for key in ("n", "low", "high")},
        )
        for figure in metrics["figures"]
        if figure["condition"] == own
        for metric in [figure["metric"]]
    ]
