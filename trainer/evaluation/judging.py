"""From what a model wrote to figures: by the official metrics, or by a function that the task's file names."""

from collections.abc import Sequence
from typing import Any

from trainer.data import import_function
from trainer.evaluation.official import UNTYPED, Row, caption_references, vqa_files
from trainer.evaluation.scoring import STYLES, caption_report, score_vqa
from trainer.evaluation.tasks import Task

Figure = dict[str, Any]
DOMAINS = ("in-domain", "near-domain", "out-domain")


def judge(task: Task, rows: Sequence[Row], texts: Sequence[str], results: list[Row]) -> tuple[list[Figure], list[str]]:
    """The figures of one strategy, without `condition`, and remarks on how they came about.

    Args:
        rows: with their references.
        texts: one a row.
        results: the same in the official form.

    Raises:
        ValueError: the metric cannot score these rows, or is none of ours and no importable function.
    """
    if task.metric in STYLES:
        annotations, questions = vqa_files(rows)
        figures = score_vqa(annotations, results, questions, style=task.metric)
        return [figure for figure in figures if not figure["row"].endswith(f": {UNTYPED}")], []
    if task.metric == "captions":
        return _score_captions(rows, results)
    return import_function(task.metric, f"metric of task '{task.name}':")(rows, texts), []


def _score_captions(rows: Sequence[Row], results: list[Row]) -> tuple[list[Figure], list[str]]:
    """All images and, where the rows tell it, each domain of nocaps."""
    report = caption_report(caption_references(rows), results)
    figures = report["figures"]
    remarks = [f"tokenizer: {report['tokenizer']}"]
    remarks += [f"{name} is not computed: {why}" for name, why in report["not_computed"].items()]
    for domain in DOMAINS:
        part = [row for row in rows if row.get("domain") == domain]
        ids = {row["image_id"] for row in part}
        if part:
            found = caption_report(caption_references(part), [r for r in results if r["image_id"] in ids])["figures"]
            figures += [{**figure, "row": f"{figure['row']}, {domain}"} for figure in found]
    return figures, remarks
