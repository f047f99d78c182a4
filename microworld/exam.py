"""The microworld's exam: the datasets and metrics of `vlkd evaluate --task microworld`.

Everything is drawn from a split and a seed. `picture` draws an image of the exam again, larger, to show it to people.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from microworld.world.caption_reader import caption_is_true
from microworld.world.corpus import questioned_passage, stated_passage
from microworld.world.kinds import NEVER_TWO_STEP
from microworld.world.language import QUESTION_TYPES, Question, caption, is_right, question
from microworld.world.rendering import render
from microworld.world.scenes import Scene, check_size, scenes
from trainer.evaluation.intervals import proportion
from trainer.evaluation.metrics.ranks import retrieval_ranks
from trainer.evaluation.tasks.task import FOLDER

PARTS = ("microworld-vqa", "microworld-knowledge", "microworld-captions", "microworld-retrieval")  # without controls
POOL = 100  # images and captions among which retrieval searches
TEXT_QUESTIONS = 4  # for each scene
GROUPS = ("one group", "two or three groups")  # rows of the table
Result = dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """Scenes of one split, a full caption of each, and questions with the row of their scene."""

    name: str
    scenes: list[Scene]
    captions: list[str]
    questions: list[tuple[int, Question]]

    def picture(self, row: int, scale: int = 1) -> Image.Image:
        """The image of a scene; `scale` 1 is the size that the model reads."""
        return render(self.scenes[row], random.Random(f"{self.name} {row}"), scale=scale)

    @cached_property
    def encoded_images(self) -> list[dict[str, Any]]:
        """The image of each scene as `datasets` stores it."""
        return [ImageFeature().encode_example(self.picture(row)) for row in range(len(self.scenes))]

    def shuffled(self) -> list[int]:
        """For each scene, the row of another scene."""
        order = random.Random(0).sample(range(len(self.scenes)), len(self.scenes))
        following = dict(zip(order, order[1:] + order[:1], strict=True))
        return [following[row] for row in range(len(order))]


@cache  # its questions, captions and retrieval are about the same scenes
def sample_exam(split: str, size: int, seed: int = 0, knowledge: bool = False) -> Exam:
    """One question of every type that each scene allows, or with `knowledge` one about every group.

    Raises:
        ValueError: there is no such split, or `size` is not a positive number.
    """
    check_size(size)
    name = f"exam {split} {seed}"
    rng = random.Random(name)
    drawn = list(islice(distinct(scenes(split, seed=1_000_000 + seed)), size))
    asked = []
    for row, scene in enumerate(drawn):
        if knowledge:
            found = [question(scene, "knowledge", rng, group) for group in scene.groups]
        else:
            found = [question(scene, type, rng) for type in QUESTION_TYPES]
        asked += [(row, each) for each in found if each]
    return Exam(name, drawn, [caption(scene, rng, "full") for scene in drawn], asked)


def distinct(stream: Iterator[Scene]) -> Iterator[Scene]:
    """The stream without scenes that a full caption could not tell from one before it in its pool."""
    while True:
        keys: set[str] = set()
        while len(keys) < POOL:
            scene = next(stream)
            if scene.key() not in keys:
                keys.add(scene.key())
                yield scene


# -------------------------------------------------------------------------------------------------------- datasets
def questions(
    split: str = "test", size: int = 500, seed: int = 0, knowledge: bool = False, shuffled: bool = False
) -> Dataset:
    """One question of every type that each of `size` scenes allows.

    Args:
        knowledge: ask what only the text corpus tells of each kind that the image shows.
        shuffled: show the image of another scene with each scene's questions.
    """
    exam = sample_exam(split, size, seed, knowledge)
    shown = exam.shuffled() if shuffled else range(size)
    rows = [shown[row] for row, _ in exam.questions]
    majority = _majority_answers(knowledge)
    columns = {
        "image": [exam.encoded_images[row] for row in rows],
        "image_id": rows,
        "question_id": list(range(len(rows))),
        "question": [asked.text for _, asked in exam.questions],
        "answers": [list(asked.accepted) for _, asked in exam.questions],
        "table_rows": [table_rows(exam.scenes[row], asked) for row, asked in exam.questions],
        "majority": [majority[asked.type] for _, asked in exam.questions],
    }
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


def captions(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """The images of `questions`, each with a full caption, and what is needed to draw its scene again."""
    exam = sample_exam(split, size, seed)
    columns = {
        "image": exam.encoded_images,
        "image_id": list(range(size)),
        "captions": [[text] for text in exam.captions],
        "exam": [f"{split} {size} {seed}"] * size,
    }
    return Dataset.from_dict(columns).cast_column("image", ImageFeature())


def held_out_text(split: str = "test", size: int = 500, seed: int = 0) -> Dataset:
    """Documents like those of the corpus, in the column `text`."""
    rng = random.Random(f"held-out text {split} {seed}")
    texts = []
    for number, scene in enumerate(islice(scenes(split, seed=2_000_000 + seed), size)):
        if number % 3 == 0:
            texts.append(caption(scene, rng, "full"))
        else:
            passage = stated_passage if number % 3 == 1 else questioned_passage
            texts.append("".join(segment.text for segment in passage(scene, rng, 1)))
    return Dataset.from_dict({"text": texts})


def text_questions(split: str = "test", size: int = 500, seed: int = 0, knowledge: bool = False) -> Dataset:
    """Questions about a scene, each with a full caption of it, from which text alone can answer them."""
    exam = sample_exam(split, size, seed, knowledge)
    rows = [
        {"caption": exam.captions[row], "question": asked.text, "answer": asked.answer}
        | {"answers": list(asked.accepted), "table_rows": table_rows(exam.scenes[row], asked)}
        for row, asked in exam.questions
    ]
    return Dataset.from_list(rows)


def table_rows(scene: Scene, asked: Question) -> list[str]:
    """The rows of the table that a question counts in."""
    if asked.type == "knowledge":
        return [f"knowledge, {'never' if asked.subject in NEVER_TWO_STEP else 'seen'} two-step"]
    return ["all", asked.type, GROUPS[len(scene.groups) > 1]]


@cache
def _majority_answers(knowledge: bool) -> dict[str, str]:
    """The most frequent answer to each type of question about training scenes."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for _, asked in sample_exam("train", 1000, 0, knowledge).questions:
        counts[asked.type][asked.answer] += 1
    return {type: found.most_common(1)[0][0] for type, found in counts.items()}


def write_task(file: Path, parts: Sequence[str] | None = None, name: str = "microworld", **dataset_kwargs) -> Path:
    """Write a copy of a task of `vlkd evaluate` with more `dataset_kwargs`, of all `parts` or some; returns `file`."""
    task = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if parts is not None:
        task["parts"] = {part: task["parts"][part] for part in parts}
    for part in task.get("parts", {name: task}).values():
        part["dataset_kwargs"] = part.get("dataset_kwargs", {}) | dataset_kwargs
    file.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return file


# --------------------------------------------------------------------------------------------------------- metrics
def score_answers(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[Result]:
    """The share of accepted answers: of all questions, by type and by number of groups."""
    return _score("VQA", rows, texts)


def score_shuffled(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[Result]:
    """The same for images of other scenes, and for the most frequent answer to each type of question."""
    majority = _score("VQA by the majority answer", rows, [row["majority"] for row in rows])
    return _score("VQA with shuffled images", rows, texts) + majority


def _score(metric: str, rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[Result]:
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        for kind in row["table_rows"]:
            hits[kind].append(is_right(text, row["answers"]))
    return [{"metric": metric, "row": kind, **proportion(found).as_dict()} for kind, found in hits.items()]


def score_captions(rows: Sequence[dict[str, Any]], texts: Sequence[str]) -> list[Result]:
    """Captions that name every object and say nothing false."""
    split, size, seed = rows[0]["exam"].split()
    drawn = sample_exam(split, int(size), int(seed)).scenes
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, text in zip(rows, texts, strict=True):
        scene = drawn[row["image_id"]]
        for kind in ("every object, nothing false", GROUPS[len(scene.groups) > 1]):
            hits[kind].append(caption_is_true(text, scene))
    return [{"metric": "captions", "row": kind, **proportion(found).as_dict()} for kind, found in hits.items()]


def score_retrieval(images: torch.Tensor, texts: torch.Tensor, image_of_text: Sequence[int]) -> list[Result]:
    """R@1 among the pairs of each pool of 100; an incomplete last pool is left out. Fewer pairs are one pool.

    Args:
        images, texts: (scenes, d_j), unit norm; row i of one belongs to row i of the other.
    """
    size = min(POOL, len(images))
    hits: dict[str, list[bool]] = {"text to image": [], "image to text": []}
    for start in range(0, len(images) - size + 1, size):
        pool = slice(start, start + size)
        to_text, to_image = retrieval_ranks(images[pool], texts[pool], range(size))
        hits["text to image"] += (to_image == 0).tolist()
        hits["image to text"] += (to_text == 0).tolist()
    metric = f"retrieval R@1 of {size}"
    return [{"metric": metric, "row": way, **proportion(found).as_dict()} for way, found in hits.items()]
