"""The official file formats: VQA's questions and annotations, COCO's captions, nocaps', Karpathy's splits, results.

Read, they become rows under our own names (see `trainer.evaluation.datasets`); our rows become what the official
metrics take.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
UNTYPED = "(none)"  # the type of a question in a dataset that tells none
# The official metrics take no empty text; of this mark their tokenizers and normalisations leave nothing.
EMPTY = "."


def read_json(path: str, option: str) -> Any:
    """Raises a ValueError that names the option and the file, if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {path} cannot be read as JSON: {error}") from error


def read_vqa(questions: str, annotations: str | None) -> tuple[list[Row], str]:
    """The rows of VQA's questions, with the answers of its annotations, and the name of the split.

    Raises:
        ValueError: a file is malformed, or a question has no annotation.
    """
    asked = read_json(questions, "--questions")
    found = _records(asked, "questions", questions, "--questions", ("question_id", "image_id", "question"))
    rows = [{key: record[key] for key in ("question_id", "image_id", "question")} for record in found]
    if annotations is not None:
        content = read_json(annotations, "--annotations")
        needed = ("question_id", "answers")
        by_id = {
            record["question_id"]: record
            for record in _records(content, "annotations", annotations, "--annotations", needed)
        }
        for row in rows:
            if (record := by_id.get(row["question_id"])) is None:
                raise ValueError(
                    f"--annotations {annotations} has no question_id {row['question_id']} of {questions}; give two "
                    "files of one split and version."
                )
            row |= {key: record.get(key) for key in ("answers", "question_type", "answer_type")}
    return rows, str(asked.get("data_subtype") or Path(questions).stem)


def read_captions(annotations: str, split: str) -> tuple[list[Row], str]:
    """The rows of COCO's or nocaps' captions or, of the given split, of Karpathy's; and the name of the split.

    Raises:
        ValueError: the file is malformed, or has no such split.
    """
    content = read_json(annotations, "--annotations")
    images = _records(content, "images", annotations, "--annotations", ())
    if images and "sentences" in images[0]:
        return _read_karpathy(images, annotations, split), split
    captions = defaultdict(list)
    if "annotations" in content:  # the images of a test split stand alone
        for record in _records(content, "annotations", annotations, "--annotations", ("image_id", "caption")):
            captions[record["image_id"]].append(record["caption"])
    _check_keys(images, "images", annotations, "--annotations", ("id", "file_name"))
    rows = [
        {"image_id": image["id"], "file_name": image["file_name"], "captions": captions.get(image["id"])}
        | ({"domain": image["domain"]} if "domain" in image else {})
        for image in images
    ]
    return rows, Path(annotations).stem


def _read_karpathy(images: list[Row], file: str, split: str) -> list[Row]:
    _check_keys(images, "images", file, "--annotations", ("filename", "split", "sentences", "imgid"))
    splits = sorted({image["split"] for image in images})
    if split not in splits:
        raise ValueError(f"--annotations {file} has no split '{split}'; give --split one of {', '.join(splits)}.")
    return [
        {
            "image_id": image.get("cocoid", image["imgid"]),
            "file_name": image["filename"],
            "captions": [sentence["raw"] for sentence in image["sentences"]],
        }
        for image in images
        if image["split"] == split
    ]


def _records(content: Any, key: str, file: str, option: str, needed: Sequence[str]) -> list[Row]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{option} {file} has no list of `{key}`; give the official file.")
    _check_keys(records, key, file, option, needed)
    return records


def _check_keys(records: list[Row], key: str, file: str, option: str, needed: Sequence[str]) -> None:
    for number, record in enumerate(records):
        if missing := [name for name in needed if name not in record]:
            raise ValueError(f"{option} {file}: {key}[{number}] has no `{missing[0]}`; give the official file.")


def index_images(folder: str) -> dict[str | int, Path]:
    """Every file in a folder and those below it, by its name and by the number its name ends in.

    Raises:
        ValueError: there is no such folder, or no file in it.
    """
    files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    if not files:
        raise ValueError(f"--images {folder} is no folder with images in it.")
    found: dict[str | int, Path] = {file.name: file for file in files}
    for file in files:
        number = file.stem.split("_")[-1]
        if number.isdecimal():
            found.setdefault(int(number), file)
    return found


def write_results(path: str | os.PathLike, kind: str, rows: Sequence[Row], texts: Sequence[str]) -> list[Row]:
    """Write texts as the official results: `[{"question_id", "answer"}]` or `[{"image_id", "caption"}]`."""
    id_key, text_key = ("question_id", "answer") if kind == "vqa" else ("image_id", "caption")
    results = [{id_key: row[id_key], text_key: text or EMPTY} for row, text in zip(rows, texts, strict=True)]
    Path(path).write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def vqa_files(rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows as VQA's annotations and questions."""
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "question_type": row.get("question_type") or UNTYPED,
            "answer_type": row.get("answer_type") or UNTYPED,
            "answers": [
                {"answer_id": number, "answer": answer} for number, answer in enumerate(row["answers"], start=1)
            ],
        }
        for row in rows
    ]
    questions = [{key: row[key] for key in ("question_id", "image_id", "question")} for row in rows]
    return {"annotations": annotations}, {"questions": questions}


def caption_references(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as COCO's captions file."""
    captions = [(row["image_id"], caption) for row in rows for caption in row["captions"]]
    return {
        "images": [{"id": row["image_id"]} for row in rows],
        "annotations": [
            {"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(captions)
        ],
    }
