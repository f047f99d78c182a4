"""The official file formats: VQA, COCO captions, nocaps, Karpathy's splits, and result files.

Files are read into rows with the project's column names (see `trainer.evaluation.datasets`). The functions raise a
ValueError that names the file, and the record's id or number, if a file is malformed.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trainer.data.metadata import as_text

Row = dict[str, Any]
Source = dict | list | str | os.PathLike  # a JSON file, or its content
# Replaces an empty text, which the official metrics reject; their tokenizers and normalization remove it.
EMPTY = "."


def read_json(source: Source, name: str) -> tuple[Any, str]:
    """The content of a JSON file, or `source` itself if it is content, and its name for error messages."""
    if not isinstance(source, (str, os.PathLike)):
        return source, name
    try:
        return json.loads(Path(source).read_text(encoding="utf-8")), f"{name} {source}"
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {source} cannot be read as JSON: {error}") from error


def records(content: Any, key: str | None, name: str, columns: Sequence[str] = ()) -> list[Row]:
    """The non-empty list of objects under `key` of a file's content (None: the content itself) with all `columns`."""
    found = content if key is None else content.get(key) if isinstance(content, dict) else None
    of = f" of `{key}`" if key else ""
    if not isinstance(found, list) or not found or not all(isinstance(record, dict) for record in found):
        form = ", ".join(f'"{column}": …' for column in columns)
        raise ValueError(f"{name} must hold a non-empty list{of}: [{{{form or '…'}}}, …].")
    for number, record in enumerate(found):
        if missing := [column for column in columns if record.get(column) is None]:
            raise ValueError(f"{name}: record {number}{of} has no `{missing[0]}`; add it: {record!r:.80}")
    return found


def by_id(found: Iterable[Row], key: str, name: str) -> dict[Any, Row]:
    """Records by id. Raise a ValueError if an id is neither a number nor a text, or occurs twice."""
    indexed: dict[Any, Row] = {}
    for record in found:
        value = record[key]
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(f"{name}: {key} {value!r} must be a number or a text: {record!r:.80}")
        if value in indexed:
            raise ValueError(f"{name}: {key} {value!r} occurs twice; keep one.")
        indexed[value] = record
    return indexed


def check_same_ids(given: Iterable, wanted: Iterable, given_name: str, wanted_name: str, key: str) -> None:
    """Raise a ValueError unless both hold the same ids."""
    given, wanted = dict.fromkeys(given), dict.fromkeys(wanted)
    if unknown := [value for value in given if value not in wanted]:
        other = {str(value): value for value in wanted}.get(str(unknown[0]))
        remedy = "give files of one split" if other is None else f"write it as {other!r}"
        raise ValueError(f"{given_name}: {key} {unknown[0]!r} is not in {wanted_name}; {remedy}.")
    if missing := [value for value in wanted if value not in given]:
        raise ValueError(
            f"{given_name} has no {key} {missing[0]!r} ({len(missing)} of the {len(wanted)} in {wanted_name} are "
            "missing); all of them are scored, so add the missing ones."
        )


def text_of(record: Row, key: str, name: str) -> str:
    """The text under `key`, or a number, truth value or date as a text. Raise a ValueError for anything else."""
    value = as_text(record.get(key))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: `{key}` is {value!r}; it must be a non-empty text.")
    return value


# --------------------------------------------------------------------------------------------------------------- VQA
def vqa_questions(source: Source, name: str) -> tuple[dict[Any, Row], str, str]:
    """VQA's questions by id, the name of the file, and the name of the split."""
    content, name = read_json(source, name)
    columns = ("question_id", "image_id", "question")
    rows = [{key: row[key] for key in columns} for row in records(content, "questions", name, columns)]
    split = content.get("data_subtype") or (Path(source).stem if isinstance(source, (str, os.PathLike)) else "")
    return by_id(rows, "question_id", name), name, str(split)


def vqa_annotations(source: Source, name: str) -> tuple[dict[Any, Row], str]:
    """VQA's annotations by question id, with `answers` as a list of texts, and the name of the file."""
    content, name = read_json(source, name)
    found = by_id(records(content, "annotations", name, ("question_id", "image_id", "answers")), "question_id", name)
    names = content.get("question_types", {})  # in OK-VQA's file
    rows = {}
    for key, record in found.items():
        try:
            answers = [as_text(answer["answer"]) for answer in record["answers"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f'{name}: question_id {key}: `answers` must be a list of {{"answer": text}}.') from error
        question_type = names.get(record.get("question_type"), record.get("question_type"))
        rows[key] = {"image_id": record["image_id"], "answers": answers}
        rows[key] |= {"question_type": question_type, "answer_type": record.get("answer_type")}
    return rows, name


def read_vqa(questions: str, annotations: str | None) -> tuple[list[Row], str]:
    """The rows of VQA's questions, with the answers of its annotations if given, and the name of the split."""
    rows, name, split = vqa_questions(questions, "--questions")
    if annotations is None:
        return list(rows.values()), split
    truth, truth_name = vqa_annotations(annotations, "--annotations")
    if missing := [key for key in rows if key not in truth]:
        raise ValueError(f"{truth_name} has no question_id {missing[0]} of {name}; give files of one split.")
    types = ("answers", "question_type", "answer_type")
    return [row | {column: truth[key][column] for column in types} for key, row in rows.items()], split


# ----------------------------------------------------------------------------------------------------------- captions
def read_captions(annotations: str, split: str) -> tuple[list[Row], str]:
    """The rows of a captions file of COCO or nocaps, or of one split of Karpathy's file, and the name of the split."""
    content, name = read_json(annotations, "--annotations")
    images = records(content, "images", name)
    if "sentences" in images[0]:
        return _read_karpathy(content, name, split), split
    captions = defaultdict(list)
    if "annotations" in content:  # absent in a test split
        for record in records(content, "annotations", name, ("image_id", "caption")):
            captions[record["image_id"]].append(record["caption"])
    rows = [
        {"image_id": image["id"], "file_name": image["file_name"], "captions": captions.get(image["id"])}
        | ({"domain": image["domain"]} if "domain" in image else {})
        for image in records(content, "images", name, ("id", "file_name"))
    ]
    return rows, Path(annotations).stem


def _read_karpathy(content: Any, name: str, split: str) -> list[Row]:
    images = records(content, "images", name, ("filename", "split", "sentences", "imgid"))
    if split not in (splits := sorted({image["split"] for image in images})):
        raise ValueError(f"{name} has no split '{split}'; set --split to one of {', '.join(splits)}.")
    return [
        {
            "image_id": image.get("cocoid", image["imgid"]),
            "file_name": image["filename"],
            "captions": [sentence["raw"] for sentence in image["sentences"]],
        }
        for image in images
        if image["split"] == split
    ]


def caption_references(source: Source, name: str) -> tuple[dict[Any, list[str]], str]:
    """The captions of each image in a COCO captions file, and the name of the file."""
    content, name = read_json(source, name)
    captions: dict[Any, list[str]] = {}
    for record in records(content, "annotations", name, ("image_id",)):
        captions.setdefault(record["image_id"], []).append(
            text_of(record, "caption", f"{name}: image_id {record['image_id']}")
        )
    if "images" in content:
        listed = by_id(records(content, "images", name, ("id",)), "id", name)
        check_same_ids(captions, listed, f"`annotations` of {name}", "its `images`", "image_id")
    return captions, name


# ------------------------------------------------------------------------------------------------------------ results
def write_results(path: str | os.PathLike, kind: str, rows: Sequence[Row], texts: Sequence[str]) -> None:
    """Write texts in the official format: `[{"question_id", "answer"}]` or `[{"image_id", "caption"}]`."""
    id_key, text_key = ("question_id", "answer") if kind == "vqa" else ("image_id", "caption")
    results = [{id_key: row[id_key], text_key: text or EMPTY} for row, text in zip(rows, texts, strict=True)]
    Path(path).write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(source: Source, id_key: str, text_key: str) -> tuple[dict[Any, str], str]:
    """The texts of an official results file by id, and the name of the file."""
    content, name = read_json(source, "results")
    found = by_id(records(content, None, name, (id_key,)), id_key, name)
    return {key: text_of(row, text_key, f"{name}: {id_key} {key}") for key, row in found.items()}, name
