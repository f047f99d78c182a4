"""The text that BART reads: what it must never hold, and how it is put together."""

import random
import re
from collections import Counter, defaultdict

import pytest

from microworld.world.caption_reader import read_caption
from microworld.world.corpus import Segment, ask, document, join, pair_document, question_segments
from microworld.world.language import LIKES, LIVES, NEVER_TWO_STEP, NUMBERS, PLURALS, QUESTION_TYPES, Question
from microworld.world.scenes import COLORS, SIZES, Group, Scene, sample_scene, split_of

_CELLS = {
    "left of": ((0, 0), (0, 1)),
    "right of": ((0, 1), (0, 0)),
    "above": ((0, 0), (1, 0)),
    "below": ((1, 0), (0, 0)),
}
_FACTS = {*LIKES.values(), *LIVES.values()}


@pytest.fixture(scope="module")
def documents() -> list[list[Segment]]:
    rng = random.Random(0)
    return [document(rng) for _ in range(6000)] + [pair_document(rng) for _ in range(2000)]


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text))


def scene_of(passage: str) -> Scene | None:
    """The scene that a full caption tells of; None where it leaves something out."""
    claims = read_caption(passage)
    groups: dict[str, dict] = defaultdict(dict)
    for m in claims.mentions:
        said = {"color": m.color, "size": m.size, "count": m.count}
        groups[m.shape] |= {name: value for name, value in said.items() if value}
    if claims.background is None or not all(len(said) == 3 for said in groups.values()):
        return None
    if len(groups) == 2 and not claims.relations:
        return None
    cells = {shape: (0, 0) for shape in groups}
    for a, relation, b in claims.relations:
        cells[a], cells[b] = _CELLS[relation]
    found = (Group(shape, cell=cells[shape], **said) for shape, said in groups.items())
    return Scene(tuple(found), claims.background)


def test_no_document_joins_a_scene_to_the_facts_of_a_shape_kept_apart(documents):
    """Where a fact of such a shape is told, the shape stands in no passage and in no question about a scene."""
    of_shape = {shape: {LIKES[shape], LIVES[shape]} for shape in NEVER_TWO_STEP}
    scene_words = {*COLORS, *SIZES, "background", "object", "objects", *NUMBERS.values()}
    told = Counter()
    for segments in documents:
        words = words_of(text_of(segments))
        for shape, kept_apart in of_shape.items():
            if not words & kept_apart:
                continue
            if words & scene_words:
                texts = [s.text for s in segments]
                facts_told = [i for i, text in enumerate(texts) if words_of(text) & kept_apart]
                named = f"(do {PLURALS[shape]}|does an? {shape})"
                asked = f"(what {named} like|where {named} live)"
                assert all(segments[i].role == "answer" and re.search(asked, texts[i - 1]) for i in facts_told)
                others = [text for i, text in enumerate(texts) if i not in facts_told and i + 1 not in facts_told]
                assert not words_of("".join(others)) & {shape, PLURALS[shape]} or _denied(shape, segments), texts
            told[shape, "in a scene" if words & scene_words else "alone"] += 1
    assert len(told) == 6 and min(told.values()) > 50  # the facts themselves are told, also beside scenes without them


def _denied(shape: str, segments: list[Segment]) -> bool:
    """Whether all that is said of a shape, its facts apart, is that it is not there: 'is there any heart?' 'no'."""
    for asked, answer in zip(segments, [*segments[1:], None], strict=True):
        is_fact = answer and words_of(answer.text) & {LIKES[shape], LIVES[shape]}
        if is_fact or not words_of(asked.text) & {shape, PLURALS[shape]} or asked.role == "answer":
            continue
        if f"is there any {shape}?" not in asked.text or answer.text.strip() != "no":
            return False
    return True


def test_the_other_shapes_facts_are_asked_of_scenes(documents):
    two_step = {
        shape
        for segments in documents
        for shape in PLURALS
        if (words := words_of(text_of(segments))) & {LIKES[shape], LIVES[shape]} and words & {"object", "objects"}
    }
    assert two_step >= set(PLURALS) - set(NEVER_TWO_STEP)


def test_no_scene_of_validation_or_test_is_told(documents):
    passages = [s.text.removeprefix(". ") for segments in documents for s in segments if s.role == "passage"]
    captions = [text for text in passages if not words_of(text) & _FACTS and not re.match("the |there ", text)]
    found = [scene for text in captions if (scene := scene_of(text))]
    assert len(found) > 3000
    assert {split_of(scene) for scene in found} == {"train", "unseen"}


def test_answers_are_those_of_the_passage(documents):
    """Right by construction: every answer about a colour, of the group that the passage names."""
    checked = 0
    for segments in documents:
        passages = [s.text.removeprefix(". ") for s in segments if s.role == "passage"]
        for asked, answer in zip(segments, segments[1:], strict=False):
            shape = re.search(r"what color (?:is|are) the (\w+)\?", asked.text)
            if asked.role == "question" and shape and shape[1] != "background":
                mentions = read_caption(passages[0]).mentions
                said = {m.color for m in mentions if shape[1] in (m.shape, PLURALS[m.shape]) and m.color}
                assert said == {answer.text.strip()}
                checked += 1
    assert checked > 300


def test_documents_are_of_every_kind(documents):
    roles = Counter(tuple(sorted({s.role for s in segments})) for segments in documents)
    kinds = {("passage",), ("answer", "question"), ("answer", "passage", "question"), ("paraphrase", "passage")}
    assert set(roles) == kinds
    assert all(count > 500 for count in roles.values())
    assert all(not text.startswith((".", " ")) and "  " not in text for text in map(text_of, documents))


def test_pair_documents_ask_one_question_of_two_groups():
    rng = random.Random(0)
    for _ in range(300):
        segments = pair_document(rng)
        assert Counter(s.role for s in segments) == {"passage": 1, "question": 1, "answer": 1}
        passage = next(s.text.removeprefix(". ") for s in segments if s.role == "passage")
        assert len(scene_of(passage).groups) == 2


def test_segments_of_questions():
    questions = [
        Question("color", "what color is the star?", "red"),
        Question("count", "how many stars are there?", "one"),
    ]
    segments = question_segments(questions)
    assert [s.role for s in segments] == ["question", "answer"] * 2
    asked = "Question: what color is the star? Answer: red. Question: how many stars are there? Answer: one"
    assert text_of(segments) == asked
    assert text_of(join("a red star", segments, first=True)) == f"{asked}. a red star"
    assert text_of(join("a red star", segments, first=False)) == f"a red star. {asked}"
    assert [s.role for s in join("a red star", segments[:2], False)] == ["passage", "question", "answer"]


def test_every_type_is_asked():
    rng = random.Random(0)
    kinds = Counter(ask(sample_scene(rng), rng).kind for _ in range(3000))
    assert set(kinds) == {*QUESTION_TYPES, "knowledge"} and min(kinds.values()) > 50


def test_a_seed_gives_the_same_documents():
    first, again, other = ([document(rng) for _ in range(20)] for rng in map(random.Random, (1, 1, 2)))
    assert first == again != other
