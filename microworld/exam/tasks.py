"""The microworld's examination as data for `vlkd evaluate --task microworld`, and how it is judged.

It is `microworld.task`'s exam, scene for scene and question for question.
"""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import islice
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from microworld.exam.exam import Exam, draw_exam, kinds_of
from microworld.world.caption_reader import caption_is_true
from microworld.world.corpus import questioned_passage, stated_passage
from microworld.world.language import QUESTION_TYPES, caption
from microworld.world.scenes import Group, Scene, scenes
from trainer.evaluation.intervals import proportion

TEXT = Value("string")


def questions(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """One question of every kind that each of `size` scenes allows."""
    return _as_questions(_exam(split, size, seed))


def knowledge_questions(split: str = "test", size: int = 500, seed: int = 1) -> Dataset:
    """Questions about what only the text corpus tells of a shape that the image shows."""
    return _as_questions(_exam(split, size, seed, ("knowledge",)))


def captions(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """The images of `questions`, each with a caption that says all there is to say, and its scene as JSON."""
    exam = _exam(split, size, seed)
    columns = {
        "image": exam.images,
        "image_id": list(range(size)),
        "captions": [[text] for text in exam.captions],
        "scene": [json.dumps(asdict(scene)) for scene in exam.scenes],
    }
    features = {"image": Image(), "image_id": Value("int64"), "captions": List(TEXT), "scene": TEXT}
    return Dataset.from_dict(columns, Features(features))


def held_out_text(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """Documents of the corpus' kinds, in the column `text`, about scenes that the corpus leaves out."""
    rng = random.Random(f"held-out text {split} {seed}")
    texts = []
    for number, scene in enumerate(islice(scenes(split, seed=2_000_000 + seed), size)):
        if number % 3 == 0:
            texts.append(caption(scene, rng, full=True))
        else:
            passage = stated_passage if number % 3 == 1 else questioned_passage
            texts.append("".join(segment.text for segment in passage(scene, rng, 1)))
    return Dataset.from_dict({"text": texts})


def text_questions(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """The questions of `questions`, each with a caption of the scene, from which text alone can answer it."""
    exam = _exam(split, size, seed)
    rows = [
        {"caption": exam.captions[row], "question": asked.question, "answer": asked.answer}
        for row, asked in exam.questions
    ]
    return Dataset.from_list(rows)


def score_answers(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Exact match, with Wilson's interval: over all, by kind of question and by number of groups."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        for kind in row["kinds"]:
            hits[kind].append(text == row["answers"][0])
    return [{"metric": "VQA", "row": kind, **proportion(found).as_dict()} for kind, found in hits.items()]


def score_captions(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Captions that name every group and say nothing false, with Wilson's interval."""
    true = [caption_is_true(text, _as_scene(row["scene"])) for row, text in zip(rows, texts, strict=True)]
    return [{"metric": "captions", "row": "all objects, nothing false", **proportion(true).as_dict()}]


@cache  # its questions, captions and retrieval are of the same scenes
def _exam(split: str, size: int, seed: int, kinds: tuple[str, ...] = QUESTION_TYPES) -> Exam:
    return draw_exam(split, size, kinds, seed)


def _as_questions(exam: Exam) -> Dataset:
    rows, files = [row for row, _ in exam.questions], [Image().encode_example(image) for image in exam.images]
    columns = {
        "image": [files[row] for row in rows],
        "image_id": rows,
        "question_id": list(range(len(rows))),
        "question": [asked.question for _, asked in exam.questions],
        "answers": [[asked.answer] for _, asked in exam.questions],
        "kinds": [kinds_of(exam.scenes[row], asked) for row, asked in exam.questions],
    }
    features = {"image": Image(), "image_id": Value("int64"), "question_id": Value("int64"), "question": TEXT}
    return Dataset.from_dict(columns, Features({**features, "answers": List(TEXT), "kinds": List(TEXT)}))


def _as_scene(text: str) -> Scene:
    scene = json.loads(text)
    groups = tuple(Group(**{**group, "cell": tuple(group["cell"])}) for group in scene["groups"])
    return Scene(groups, scene["background"])
