"""Official result files in, figures out: nothing is scored on a subset, and what does not fit is named.

A figure is {"metric", "row", "value", "n", "low", "high"}, as in metrics.json, without its condition.
"""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.data.metadata import as_text
from trainer.data.sources import import_function
from trainer.evaluation.formats import UNTYPED, Row, caption_references, vqa_files
from trainer.evaluation.metrics.retrieval_recall.recall import recall_scores
from trainer.evaluation.metrics.text_qa.matching import text_qa_scores
from trainer.evaluation.metrics.vqa_accuracy.agreement import vqa_scores
from trainer.evaluation.metrics.vqa_accuracy.answers import ANNOTATORS
from trainer.evaluation.tasks.task import Task

Source = dict | list | str | os.PathLike
MetricTable = list[dict[str, Any]]
SAY = "write what was said, or a word such as 'unanswerable'"
STYLES = {"vqa": "VQA accuracy", "ok-vqa": "OK-VQA accuracy"}
Figure = dict[str, Any]
DOMAINS = ("in-domain", "near-domain", "out-domain")


def score_vqa(
    annotations: Source, results: Source, questions: Source | None = None, style: str = "vqa", seed: int = 0
) -> MetricTable:
    """The official accuracy: over all, by answer type, by question type. Sources are files or what they hold.

    Args:
        annotations: {"annotations": [{"question_id", "image_id", "answer_type", "question_type",
            "answers": [{"answer"}, …]}, …]}.
        results: [{"question_id", "answer"}, …], one answer to every question.
        questions: {"questions": [{"question_id", "image_id", "question"}, …]}; only compared with the annotations.
        style: "vqa", or "ok-vqa": the same accuracy of the stemmed answers in OK-VQA's files, whose question types are
            written out and whose one answer type is left out.
        seed: of the bootstrap, which resamples images.

    Raises:
        ValueError: a source that is not in its format, or ids that are missing, double or unknown.
    """
    if style not in STYLES:
        raise ValueError(f"style '{style}' is not known: use {' or '.join(STYLES)}.")
    data, name = _read(annotations, "annotations")
    truth = _by_id(_entries(data, "annotations", name), "question_id", name)
    for key, entry in truth.items():
        _check_annotation(key, entry, name)
    if questions is not None:
        asked, asked_name = _read(questions, "questions")
        asked = _by_id(_entries(asked, "questions", asked_name), "question_id", asked_name)
        _same_ids(asked, truth, asked_name, name, "question_id")
        for key, entry in asked.items():
            if entry.get("image_id") != truth[key]["image_id"]:
                raise ValueError(
                    f"{asked_name}: question_id {key} is of image {entry.get('image_id')!r}, in {name} of image "
                    f"{truth[key]['image_id']!r}: take both files of one split."
                )
    said, said_name = _read(results, "results")
    said = _by_id(_list(said, said_name, '[{"question_id": …, "answer": …}, …]'), "question_id", said_name)
    _same_ids(said, truth, said_name, name, "question_id")
    names = data.get("question_types") or {} if style == "ok-vqa" else {}
    scores = vqa_scores(
        [_text(said[key], "answer", f"{said_name}: question_id {key}") for key in truth],
        [[as_text(answer["answer"]) for answer in entry["answers"]] for entry in truth.values()],
        [entry["answer_type"] for entry in truth.values()] if style == "vqa" else None,
        [names.get(entry["question_type"], entry["question_type"]) for entry in truth.values()],
        [entry["image_id"] for entry in truth.values()],
        seed,
    )
    rows = {"all": scores["accuracy"]}
    for types in ("answer_types", "question_types"):
        rows |= {f"{types[:-1].replace('_', ' ')}: {kind}": score for kind, score in scores[types].items()}
    return _figures(STYLES[style], rows)


def caption_report(
    references: Source,
    results: Source,
    metrics: Sequence[str] | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr and SPICE from COCO's files: {"tokenizer", "not_computed", "figures"}.

    Args:
        references: {"images": [{"id"}, …], "annotations": [{"image_id", "caption"}, …]}; `images` may be left out.
        results: [{"image_id", "caption"}, …], one caption for every image.
        metrics, tokenizer, seed: as `caption_scores` takes them.

    Raises:
        ValueError: a source that is not in its format, ids that are missing, double or unknown, pycocoevalcap not
            installed, or a metric or tokenizer asked for that cannot be had.
    """
    try:
        from trainer.evaluation.metrics.caption_scores.captions import caption_scores
    except ModuleNotFoundError as error:
        raise ValueError(f"caption metrics need {error.name}: pip install 'vlkd[eval]'.") from error
    data, name = _read(references, "references")
    truth: dict[Any, list[str]] = {}
    for entry in _entries(data, "annotations", name):
        key = _id(entry, "image_id", name)
        truth.setdefault(key, []).append(_text(entry, "caption", f"{name}: image_id {key}", "take the official file"))
    if "images" in data:
        listed = _by_id(_list(data["images"], name, '"images": [{"id": …}, …]'), "id", name)
        _same_ids(truth, listed, f"{name}, annotations", f"{name}, images", "image_id")
    said, said_name = _read(results, "results")
    said = _by_id(_list(said, said_name, '[{"image_id": …, "caption": …}, …]'), "image_id", said_name)
    _same_ids(said, truth, said_name, name, "image_id")
    captions = [_text(said[key], "caption", f"{said_name}: image_id {key}") for key in truth]
    found = caption_scores(captions, list(truth.values()), metrics, tokenizer, seed)
    return {
        "tokenizer": found["tokenizer"],
        "not_computed": found["not_computed"],
        "figures": _figures("captions", found["scores"]),
    }


def score_captions(
    references: Source, results: Source, seed: int = 0, metrics: Sequence[str] | None = None
) -> MetricTable:
    """The figures of `caption_report`: those that can be had here. The report says which cannot, and why."""
    return caption_report(references, results, metrics, seed=seed)["figures"]


def score_retrieval(image_embeds: Any, text_embeds: Any, image_of_text: Sequence[int], seed: int = 0) -> MetricTable:
    """R@1, R@5 and R@10 both ways; see `recall_scores` for the arguments and what is raised."""
    scores = recall_scores(image_embeds, text_embeds, image_of_text, seed)
    return [
        figure
        for way, depths in scores.items()
        for depth, score in depths.items()
        for figure in _figures(f"retrieval {depth}", {way.replace("_", " "): score})
    ]


def score_text_qa(predictions: list[str], references: list[str | list[str]], seed: int = 0) -> MetricTable:
    """Exact match and token F1; see `text_qa_scores` for the arguments and what is raised."""
    scores = text_qa_scores(predictions, references, seed)
    return _figures("text QA", {"exact match": scores["exact_match"], "token F1": scores["f1"]})


def text_qa_pairs(references: Source, results: Source) -> tuple[list[str], list[list[str]]]:
    """Answers and right answers in one order, from {"id": "answer" or ["answer", …]} and {"id": "answer"}.

    Raises:
        ValueError: a source that is not in this format, or ids that are missing or unknown.
    """
    (truth, name), (said, said_name) = _read(references, "references"), _read(results, "results")
    for data, where in ((truth, name), (said, said_name)):
        if not isinstance(data, dict) or not data:
            raise ValueError(f'{where} holds {_kind(data)}: write one object, {{"id": "answer", …}}.')
    _same_ids(said, truth, said_name, name, "id")
    right = {key: list(map(as_text, texts if isinstance(texts, list) else [texts])) for key, texts in truth.items()}
    for key, texts in right.items():
        if not texts or not all(isinstance(text, str) for text in texts):
            found = _kind(truth[key])
            raise ValueError(f"{name}: id {key!r} has {found} for right answers: write a text or a list of texts.")
    return [_text(said, key, said_name) for key in right], list(right.values())


def _figures(metric: str, rows: dict[str, dict]) -> MetricTable:
    return [{"metric": metric, "row": row} | score for row, score in rows.items()]


def _read(source: Source, name: str) -> tuple[Any, str]:
    """What a source holds, and what to call it in an error."""
    if not isinstance(source, (str, os.PathLike)):
        return source, name
    try:
        with open(source, encoding="utf-8") as file:
            return json.load(file, object_pairs_hook=_no_doubles), str(source)
    except OSError as error:
        raise ValueError(f"{name}: '{source}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{name}: '{source}' cannot be read as JSON: {error}.") from error


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; json itself would keep the last of two entries of one name and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{double}' stands twice in one object; leave one")
    return found


def _list(value: Any, name: str, form: str) -> list[dict]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{name} holds {_kind(value)}, not a list of objects: write {form}.")
    if not value:
        raise ValueError(f"{name} is an empty list: write {form}.")
    return value


def _entries(data: Any, key: str, name: str) -> list[dict]:
    if not isinstance(data, dict) or key not in data:
        raise ValueError(
            f"{name} holds {_kind(data)} without `{key}`: take the official file, an object with `{key}`."
        )
    return _list(data[key], f"{name}: `{key}`", "one object an entry")


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _id(entry: dict, key: str, name: str) -> Any:
    if isinstance(entry.get(key), bool) or not isinstance(entry.get(key), (int, str)):
        raise ValueError(f"{name}: an entry has {key} {entry.get(key)!r}: write its id. It is {_short(entry)}.")
    return entry[key]


def _by_id(entries: Iterable[dict], key: str, name: str) -> dict[Any, dict]:
    found: dict[Any, dict] = {}
    for entry in entries:
        if _id(entry, key, name) in found:
            raise ValueError(f"{name}: {key} {entry[key]!r} stands there twice: leave one.")
        found[entry[key]] = entry
    return found


def _same_ids(given: Iterable, wanted: Iterable, given_name: str, wanted_name: str, key: str) -> None:
    given, wanted = dict.fromkeys(given), dict.fromkeys(wanted)
    unknown = [one for one in given if one not in wanted]
    if unknown:
        other = {str(one): one for one in wanted}.get(str(unknown[0]))
        hint = f"; write it as {other!r}" if other is not None else ": take the files of one split"
        raise ValueError(f"{given_name}: {key} {unknown[0]!r} is not in {wanted_name}, {len(unknown)} are not{hint}.")
    missing = [one for one in wanted if one not in given]
    if missing:
        raise ValueError(
            f"{given_name} has no {key} {missing[0]!r} ({len(missing)} of the {len(wanted)} in {wanted_name} are "
            "missing): every one is scored, so give every one, or score against a file of those alone."
        )


def _text(entry: dict, key: str, where: str, remedy: str = SAY) -> str:
    value = as_text(entry.get(key))
    if not isinstance(value, str) or not value.strip():
        what = "is empty" if isinstance(value, str) else f"is {_kind(value)}, no text"
        raise ValueError(f"{where}: its `{key}` {what}: {remedy}.")
    return value


def _check_annotation(key: Any, entry: dict, name: str) -> None:
    where = f"{name}: question_id {key}"
    answers = entry.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError(f"{where} has no list of `answers`: a split without public answers cannot be scored here.")
    if len(answers) != ANNOTATORS:
        raise ValueError(f"{where} has {len(answers)} answers: the accuracy is defined over {ANNOTATORS}.")
    for answer in answers:
        if not isinstance(as_text(answer.get("answer")), str):
            raise ValueError(f"{where}: an answer is {answer.get('answer')!r}, no text: take the official file.")
    _id(entry, "image_id", where)
    for field in ("answer_type", "question_type"):
        if not isinstance(entry.get(field), str):
            raise ValueError(f"{where} has {field} {entry.get(field)!r}: take the official file.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[:80] + "…" * (len(text) > 80)


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
