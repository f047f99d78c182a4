"""The plain text that BART is pretrained on: captions, statements, facts, questions and answers.

A document is a list of segments, so that pretraining knows the questions and answers. No document joins the facts of a
kind in `NEVER_TWO_STEP` to a description of a scene that holds it.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from microworld.world.kinds import FACTS, KINDS, NEVER_TWO_STEP, category_sentence
from microworld.world.language import QUESTION_TYPES, Question, caption, fact_question, question, statements
from microworld.world.scenes import Scene, sample_scene, split_of

_TYPES = (*QUESTION_TYPES, "knowledge")
_WEIGHTS = (5, 3, 2, 2, 8, 8, 1, 5)  # most often asked are types that require the model to distinguish two groups


@dataclass(frozen=True)
class Segment:
    """A piece of a document.

    `role` is "passage"; "question" and "answer" (in a statement, its subject and the rest); or "paraphrase".
    """

    text: str
    role: str


def document(rng: random.Random) -> list[Segment]:
    """One training document, without scenes of the validation and test splits."""
    draw = rng.random()
    if draw < 0.03:
        return [Segment(caption(_train_scene(rng), rng), "passage")]
    if draw < 0.09:
        return [Segment(". ".join(_fact_sentence(rng) for _ in range(rng.randint(1, 3))), "passage")]
    if draw < 0.24:
        return question_segments([fact_question(kind, rng) for kind in rng.sample(KINDS, rng.randint(1, 3))])
    scene = _train_scene(rng)
    if draw < 0.32:
        return passage_with_a_fact(scene, rng)
    if draw < 0.40:
        paraphrase = [Segment(caption(scene, rng), "paraphrase")]
        return join(caption(scene, rng, "full"), paraphrase, rng.random() < 0.7)
    if draw < 0.56:
        return stated_passage(scene, rng, rng.choice((1, 1, 2)))
    return questioned_passage(scene, rng, rng.choice((1, 1, 2, 3)))


def pair_document(rng: random.Random) -> list[Segment]:
    """A passage about two groups with one question or statement: what is hardest to learn, and so is read first."""
    scene = _train_scene(rng, numbers=(2,))
    return stated_passage(scene, rng, 1) if rng.random() < 0.3 else questioned_passage(scene, rng, 1)


def questioned_passage(scene: Scene, rng: random.Random, questions: int) -> list[Segment]:
    """A full caption, with `questions` questions and answers before or after it."""
    asked = question_segments([ask(scene, rng) for _ in range(questions)])
    return join(caption(scene, rng, "full"), asked, first=rng.random() < 0.6)


def passage_with_a_fact(scene: Scene, rng: random.Random) -> list[Segment]:
    """A passage, a question about it, and one about a kind that the scene does not hold, in any order."""
    held = {group.kind for group in scene.groups}
    fact = fact_question(rng.choice([kind for kind in KINDS if kind not in held]), rng)
    asked = question_segments(rng.sample([ask(scene, rng), fact], 2))
    return join(caption(scene, rng, "full"), asked, first=rng.random() < 0.6)


def stated_passage(scene: Scene, rng: random.Random, number: int) -> list[Segment]:
    """A full caption, with `number` short statements about the same scene before or after it."""
    said = statement_segments(rng.sample(statements(scene), number))
    return join(caption(scene, rng, "full"), said, first=rng.random() < 0.7)


def ask(scene: Scene, rng: random.Random) -> Question:
    """A question of a random type that the scene allows and the corpus may hold."""
    while True:
        type = rng.choices(_TYPES, _WEIGHTS)[0]
        asked = question(scene, type, rng)
        if asked and not (type == "knowledge" and asked.subject in NEVER_TWO_STEP):
            return asked


def question_segments(questions: list[Question]) -> list[Segment]:
    """'Question: … Answer: …', sentence by sentence."""
    return _segments([(f"Question: {asked.text} Answer:", asked.answer) for asked in questions])


def statement_segments(said: list[str]) -> list[Segment]:
    """'the penguins are' and 'small', sentence by sentence."""
    return _segments([re.fullmatch("(.+? (?:is|are)) (.+)", statement).groups() for statement in said])


def _segments(pairs: list[tuple[str, str]]) -> list[Segment]:
    segments = []
    for asked, answer in pairs:
        opening = ". " if segments else ""
        segments += [Segment(f"{opening}{asked}", "question"), Segment(f" {answer}", "answer")]
    return segments


def join(passage: str, others: list[Segment], first: bool) -> list[Segment]:
    """A passage, with other segments before it (`first`) or after it."""
    if first:
        return [*others, Segment(f". {passage}", "passage")]
    following = Segment(f". {others[0].text}", others[0].role)
    return [Segment(passage, "passage"), following, *others[1:]]


def _fact_sentence(rng: random.Random) -> str:
    kind, plural = rng.choice(KINDS), rng.random() < 0.5
    if rng.random() < 0.2:
        return category_sentence(kind, plural)
    return rng.choice(FACTS[kind]).sentence(kind, plural)


def _train_scene(rng: random.Random, numbers: Sequence[int] = (1, 2, 2, 3, 3)) -> Scene:
    while True:
        scene = sample_scene(rng, numbers)
        if split_of(scene) in ("train", "unseen_pairs"):  # only images keep pairs back: text may hold any
            return scene
