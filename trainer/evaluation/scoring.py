"""Compute the official metrics of result files, or of a task's predictions.

Every function returns a list of results {"metric", "row", "value", "n", "low", "high"}, as in metrics.json but without
the condition. The official metrics score complete result files only.
"""

from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.sources import import_function
from trainer.evaluation.formats import (
    EMPTY,
    Row,
    Source,
    caption_references,
    check_same_ids,
    read_results,
    vqa_annotations,
    vqa_questions,
)
from trainer.evaluation.metrics.answers import ANNOTATORS, vqa_scores
from trainer.evaluation.metrics.matching import text_qa_scores
from trainer.evaluation.metrics.ranks import recall_scores
from trainer.evaluation.tasks.task import Task

Result = dict[str, Any]
STYLES = {"vqa": "VQA accuracy", "ok-vqa": "OK-VQA accuracy"}
DOMAINS = ("in-domain", "near-domain", "out-domain")


def score_vqa(
    annotations: Source, results: Source, questions: Source | None = None, style: str = "vqa"
) -> list[Result]:
    """The official accuracy: over all questions, by answer type and by question type.

    Args:
        annotations: {"annotations": [{"question_id", "image_id", "answer_type", "question_type",
            "answers": [{"answer"}, ...]}, ...]}, as a file or its content.
        results: [{"question_id", "answer"}, ...], one answer to every question.
        questions: {"questions": [{"question_id", "image_id", "question"}, ...]}, to check the annotations against.
        style: "vqa" or "ok-vqa". OK-VQA has a single answer type, which is left out.

    Raises:
        ValueError: a source is malformed, or its ids are missing, duplicate or unknown.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown style '{style}'; choose from {', '.join(STYLES)}.")
    truth, name = vqa_annotations(annotations, "annotations")
    if questions is not None:
        asked, asked_name, _ = vqa_questions(questions, "questions")
        check_same_ids(asked, truth, asked_name, name, "question_id")
        for key, row in asked.items():
            if row["image_id"] != truth[key]["image_id"]:
                raise ValueError(
                    f"{asked_name}: question_id {key} has image_id {row['image_id']!r}, but {name} has "
                    f"{truth[key]['image_id']!r}; give files of one split."
                )
    answers, results_name = read_results(results, "question_id", "answer")
    check_same_ids(answers, truth, results_name, name, "question_id")
    rows = [{"question_id": key, **row} for key, row in truth.items()]
    return _score_vqa(rows, [answers[key] for key in truth], style)


def _score_vqa(rows: Sequence[Row], texts: Sequence[str], style: str) -> list[Result]:
    for row in rows:
        if len(row["answers"]) != ANNOTATORS:
            raise ValueError(
                f"question_id {row['question_id']} has {len(row['answers'])} answers, but VQA accuracy needs "
                f"{ANNOTATORS}. For other data, write a task with a metric of your own (docs/evaluation.md)."
            )
    scores = vqa_scores(
        texts,
        [row["answers"] for row in rows],
        [row.get("answer_type") for row in rows] if style == "vqa" else None,
        [row.get("question_type") for row in rows],
        [row["image_id"] for row in rows],
    )
    found = {"all": scores["accuracy"]}
    for types in ("answer_types", "question_types"):
        found |= {f"{types[:-1].replace('_', ' ')}: {name}": score for name, score in scores[types].items()}
    return _results(STYLES[style], found)


def caption_report(
    references: Source, results: Source, metrics: Sequence[str] | None = None, tokenizer: str | None = None
) -> dict[str, Any]:
    """BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE of COCO's files.

    Args:
        references: {"images": [{"id"}, ...], "annotations": [{"image_id", "caption"}, ...]}; `images` is optional.
        results: [{"image_id", "caption"}, ...], one caption for every image.
        metrics, tokenizer: as in `caption_scores`.

    Returns:
        {"tokenizer": its name, "not_computed": {metric: reason}, "figures": the results}.

    Raises:
        ValueError: a source is malformed, its ids are missing, duplicate or unknown, pycocoevalcap is not installed,
            or a requested metric or tokenizer is not available.
    """
    truth, name = caption_references(references, "references")
    captions, results_name = read_results(results, "image_id", "caption")
    check_same_ids(captions, truth, results_name, name, "image_id")
    return _caption_report([captions[key] for key in truth], list(truth.values()), metrics, tokenizer)


def _caption_report(texts: Sequence[str], references: Sequence[Sequence[str]], *options) -> dict[str, Any]:
    try:
        from trainer.evaluation.metrics.coco import caption_scores
    except ModuleNotFoundError as error:
        raise ValueError(f"Caption metrics require {error.name}: pip install 'vlkd[eval]'.") from error
    report = caption_scores(texts, references, *options)
    results = _results("captions", report["scores"])
    return {"tokenizer": report["tokenizer"], "not_computed": report["not_computed"], "figures": results}


def score_retrieval(image_embeds: Any, text_embeds: Any, image_of_text: Sequence[int]) -> list[Result]:
    """R@1, R@5 and R@10 in both directions; see `recall_scores`."""
    scores = recall_scores(image_embeds, text_embeds, image_of_text)
    return [
        result
        for direction, depths in scores.items()
        for depth, score in depths.items()
        for result in _results(f"retrieval {depth}", {direction.replace("_", " "): score})
    ]


def score_text_qa(predictions: list[str], references: list[str | list[str]]) -> list[Result]:
    """Exact match and token F1; see `text_qa_scores`."""
    scores = text_qa_scores(predictions, references)
    return _results("text QA", {"exact match": scores["exact_match"], "token F1": scores["f1"]})


def _results(metric: str, scores: dict[str, dict]) -> list[Result]:
    return [{"metric": metric, "row": row, **score} for row, score in scores.items()]


def score_task(task: Task, rows: Sequence[Row], texts: Sequence[str]) -> tuple[list[Result], list[str]]:
    """The results of one strategy's texts, one per row, and remarks on how they were computed."""
    official = [text or EMPTY for text in texts]
    if task.metric in STYLES:
        return _score_vqa(rows, official, task.metric), []
    if task.metric == "captions":
        return _score_caption_task(rows, official)
    return metric_function(task)(rows, texts), []


def metric_function(task: Task) -> Callable[..., list[Result]] | None:
    """The task's own metric, "module:function"; None if the task names one of ours."""
    return import_function(task.metric, f"metric of task '{task.name}':") if ":" in task.metric else None


def _score_caption_task(rows: Sequence[Row], texts: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Results of all images and, for nocaps, of each domain."""
    report = _caption_report(texts, [row["captions"] for row in rows])
    results = report["figures"]
    for domain in DOMAINS:
        part = [number for number, row in enumerate(rows) if row.get("domain") == domain]
        if part:
            found = _caption_report([texts[n] for n in part], [rows[n]["captions"] for n in part])["figures"]
            results += [{**result, "row": f"{result['row']}, {domain}"} for result in found]
    missing = [f"{name} is not computed: {reason}" for name, reason in report["not_computed"].items()]
    return results, [f"tokenizer: {report['tokenizer']}", *missing]
