"""The plain text that BART reads before it ever meets an image: captions, statements, facts, questions and answers.

A document is a list of segments, so that pretraining knows where the questions and answers stand. No document joins
the facts of a shape in `NEVER_TWO_STEP` to a description of a scene that holds it.
"""

import random
from dataclasses import dataclass

from microworld.world.language import NEVER_TWO_STEP, Question, caption, fact_question, facts, question, statements
from microworld.world.scenes import SHAPES, Scene, sample_scene, split_of

# How often each type is asked: the ones that need two groups to be kept apart are drilled.
_QUESTION_WEIGHTS = {
    "color": 3,
    "shape": 3,
    "size": 3,
    "count": 2,
    "relation": 4,
    "yes/no": 6,
    "background": 1,
    "knowledge": 3,
}


@dataclass(frozen=True)
class Segment:
    """A piece of a document.

    `role` is 'passage'; 'question' and 'answer' (of a statement, its subject and what it says of it); or 'paraphrase'.
    """

    text: str
    role: str


def document(rng: random.Random) -> list[Segment]:
    """One training document; test and validation scenes are left to the measurements."""
    kind = rng.random()
    if kind < 0.05:
        return [Segment(caption(_train_scene(rng), rng), "passage")]
    if kind < 0.09:
        said = statements(_train_scene(rng))
        return [Segment(". ".join(rng.sample(said, rng.randint(1, 3))), "passage")]
    if kind < 0.14:
        told = [rng.choice(facts(shape, plural=rng.random() < 0.5)) for shape in rng.sample(SHAPES, rng.randint(1, 3))]
        return [Segment(". ".join(told), "passage")]
    if kind < 0.26:
        return question_segments([fact_question(shape, rng) for shape in rng.sample(SHAPES, rng.randint(1, 3))])
    scene = _train_scene(rng)
    if kind < 0.36:
        return passage_with_a_fact(scene, rng)
    if kind < 0.46:
        return join(caption(scene, rng, full=True), [Segment(caption(scene, rng), "paraphrase")], rng.random() < 0.7)
    if kind < 0.64:
        return stated_passage(scene, rng, rng.choice((1, 1, 2, 3)))
    return questioned_passage(scene, rng, rng.choice((1, 1, 2, 3)))


def pair_document(rng: random.Random) -> list[Segment]:
    """A passage about two groups, a question or statement: the hardest thing to learn, and so what is read first."""
    while len((scene := _train_scene(rng)).groups) < 2:
        pass
    return stated_passage(scene, rng, 1) if rng.random() < 0.3 else questioned_passage(scene, rng, 1)


def questioned_passage(scene: Scene, rng: random.Random, questions: int) -> list[Segment]:
    """A full caption, with so many questions and answers before or behind it."""
    asked = question_segments([ask(scene, rng) for _ in range(questions)])
    return join(caption(scene, rng, full=True), asked, first=rng.random() < 0.6)


def passage_with_a_fact(scene: Scene, rng: random.Random) -> list[Segment]:
    """A passage, a question about it, and one about a fact of a shape that the scene does not hold, in any order."""
    held = {group.shape for group in scene.groups}
    fact = fact_question(rng.choice([shape for shape in SHAPES if shape not in held]), rng)
    asked = question_segments(rng.sample([ask(scene, rng), fact], 2))
    return join(caption(scene, rng, full=True), asked, first=rng.random() < 0.6)


def stated_passage(scene: Scene, rng: random.Random, number: int) -> list[Segment]:
    """A full caption, with so many short statements of the same scene before or behind it."""
    said = statement_segments(rng.sample(statements(scene), number))
    return join(caption(scene, rng, full=True), said, first=rng.random() < 0.7)


def ask(scene: Scene, rng: random.Random) -> Question:
    """A question of a random type that the scene allows and the corpus may hold."""
    while True:
        kind = rng.choices(list(_QUESTION_WEIGHTS), list(_QUESTION_WEIGHTS.values()))[0]
        asked = question(scene, kind, rng)
        if asked and not (kind == "knowledge" and asked.subject in NEVER_TWO_STEP):
            return asked


def question_segments(questions: list[Question]) -> list[Segment]:
    """'Question: … Answer: …', sentence by sentence."""
    segments = []
    for i, q in enumerate(questions):
        opening = ". Question:" if i else "Question:"
        segments += [Segment(f"{opening} {q.question} Answer:", "question"), Segment(f" {q.answer}", "answer")]
    return segments


def statement_segments(said: list[str]) -> list[Segment]:
    """'the circles are' and 'red', sentence by sentence."""
    segments = []
    for i, statement in enumerate(said):
        verb = " are " if " are " in statement else " is "
        subject, _, rest = statement.partition(verb)
        opening = ". " if i else ""
        segments += [Segment(f"{opening}{subject}{verb.rstrip()}", "question"), Segment(f" {rest}", "answer")]
    return segments


def join(passage: str, others: list[Segment], first: bool) -> list[Segment]:
    """A passage, with other segments before it (`first`) or behind it."""
    if first:
        return [*others, Segment(f". {passage}", "passage")]
    following = Segment(f". {others[0].text}", others[0].role)
    return [Segment(passage, "passage"), following, *others[1:]]


def _train_scene(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if split_of(scene) in ("train", "unseen"):  # only images keep "unseen" pairs back: text may hold any
            return scene
