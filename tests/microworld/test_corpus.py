"""The text that BART reads: what it must never hold, and how it is put together."""

import hashlib
import random
import re
from collections import Counter
from itertools import combinations

import pytest

from microworld.world.caption_reader import Claims, read_caption
from microworld.world.corpus import (
    Segment,
    ask,
    document,
    join,
    pair_document,
    passage_with_a_fact,
    question_segments,
    statement_segments,
)
from microworld.world.kinds import FACTS, KINDS, NEVER_TWO_STEP, PLURAL
from microworld.world.language import GROUND, QUESTION_TYPES, Question, caption
from microworld.world.scenes import is_unseen_pair, sample_scene

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = {"one": 1, "two": 2, "three": 3}
SINGULAR = {PLURAL[kind]: kind for kind in KINDS} | {kind: kind for kind in KINDS}
NAMES = re.compile(rf"\b({'|'.join(sorted(SINGULAR, key=len, reverse=True))})\b")


@pytest.fixture(scope="module")
def documents() -> list[list[Segment]]:
    rng = random.Random(0)
    return [document(rng) for _ in range(3000)] + [pair_document(rng) for _ in range(500)]


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def claims_of(segments: list[Segment]) -> Claims | None:
    """What the document's passage claims about a scene; None if it has no such passage."""
    passages = [segment.text.removeprefix(". ") for segment in segments if segment.role == "passage"]
    try:
        return read_caption(passages[0])
    except (IndexError, ValueError):
        return None


def key_of(claims: Claims) -> str | None:
    """The key of the scene that a full caption tells of; None where it leaves something out."""
    said: dict[str, dict] = {}
    for m in claims.mentions:
        traits = {"count": m.count, "size": m.size}
        said.setdefault(m.kind, {}).update({name: value for name, value in traits.items() if value})
    relations = {(a, b): word for a, word, b in claims.relations}
    relations |= {(b, a): INVERSE[word] for (a, b), word in relations.items()}
    pairs = list(combinations(sorted(said), 2))
    if not claims.background or any(len(found) < 2 for found in said.values()) or set(pairs) - set(relations):
        return None
    parts = [f"{said[kind]['count']} {said[kind]['size']} {kind}" for kind in sorted(said)]
    return ", ".join([*parts, *(relations[pair] for pair in pairs), claims.background])


# ---------------------------------------------------------------------------------------------- what is left out
def test_no_document_joins_a_scene_to_the_facts_of_a_kind_kept_apart(documents):
    phrases = {kind: "|".join(fact.phrase for fact in FACTS[kind]) for kind in NEVER_TWO_STEP}
    told = Counter()
    for segments in documents:
        text, claims = text_of(segments), claims_of(segments)
        for kind, phrase in phrases.items():
            if re.search(rf"\b({phrase})\b", text):
                assert claims is None or kind not in {mention.kind for mention in claims.mentions}, text
                told[kind, claims is not None] += 1
    # The corpus has these facts, also next to scenes without their kind.
    assert all(told[kind, False] > 3 for kind in phrases) and sum(told[kind, True] for kind in phrases) > 15


def test_the_other_kinds_facts_are_asked_of_scenes(documents):
    joined = set()
    for segments in documents:
        if claims := claims_of(segments):
            text = text_of(segments)
            held = {mention.kind for mention in claims.mentions}
            joined |= {kind for kind in held for fact in FACTS[kind] if re.search(rf"\b{fact.phrase}\b", text)}
    assert joined == set(KINDS) - NEVER_TWO_STEP


def test_the_corpus_has_no_scene_of_validation_or_test(documents):
    rng = random.Random(1)
    for scene in (sample_scene(rng) for _ in range(50)):
        assert key_of(read_caption(caption(scene, rng, "full"))) == scene.key()
    found = {key for segments in documents if (claims := claims_of(segments)) and (key := key_of(claims))}
    assert len(found) > 2000
    for key in found:
        *parts, background = key.split(", ")
        kinds = [part.split(" ", 2)[2] for part in parts if part[0].isdigit()]
        pairs = [*combinations(kinds, 2), *((kind, background) for kind in kinds)]
        remainder = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        assert remainder < 8 or any(is_unseen_pair(*pair) for pair in pairs), key


# ------------------------------------------------------------------------------------------------ the content
def test_answers_are_those_of_the_passage(documents):
    """Counts, sizes, backgrounds and relations that are asked in one form, compared with what the passage claims."""
    checked = Counter()
    for segments in documents:
        claims = claims_of(segments)
        for asked, answer in zip(segments, segments[1:], strict=False):
            if claims is None or asked.role != "question" or "Question:" not in asked.text:
                continue
            text, said = asked.text, answer.text.strip()
            if found := re.search(r"how many (.+?) are there", text):
                told = {m.count for m in claims.mentions if PLURAL[m.kind] == found[1] and m.count}
                if told:  # not how many animals
                    assert told == {NUMBERS[said]}
                    checked["count"] += 1
            elif found := re.search(r"what size (?:is|are) the (.+?)\?", text):
                assert {m.size for m in claims.mentions if m.kind == SINGULAR[found[1]] and m.size} == {said}
                checked["size"] += 1
            elif "what is the background?" in text:
                assert GROUND[claims.background] == said
                checked["background"] += 1
            elif found := re.search(r"where (?:is|are) the (.+?) relative to the (.+?)\?", text):
                a, b = SINGULAR[found[1]], SINGULAR[found[2]]
                word = said.removesuffix(f" the {found[2]}")
                assert (a, word, b) in claims.relations or (b, INVERSE[word], a) in claims.relations
                checked["relation"] += 1
    assert len(checked) == 4 and min(checked.values()) > 30, checked


def test_documents_are_of_every_kind(documents):
    roles = Counter(tuple(sorted({segment.role for segment in segments})) for segments in documents)
    kinds = {("passage",), ("answer", "question"), ("answer", "passage", "question"), ("paraphrase", "passage")}
    assert set(roles) == kinds and min(roles.values()) > 150
    assert all(not text.startswith((".", " ")) and "  " not in text for text in map(text_of, documents))
    assert not any("None" in text for text in map(text_of, documents))


def test_pair_documents_have_two_groups_and_one_question_or_statement(documents):
    for segments in documents[3000:]:
        assert Counter(segment.role for segment in segments) == {"passage": 1, "question": 1, "answer": 1}
        assert len({mention.kind for mention in claims_of(segments).mentions}) == 2


def test_a_fact_beside_a_scene_is_about_another_kind():
    rng = random.Random(2)
    for _ in range(100):
        scene = sample_scene(rng)
        segments = passage_with_a_fact(scene, rng)
        assert Counter(segment.role for segment in segments) == {"passage": 1, "question": 2, "answer": 2}
        held = {mention.kind for mention in claims_of(segments).mentions}
        assert held == {group.kind for group in scene.groups}
        named = [set(NAMES.findall(segment.text)) for segment in segments if segment.role == "question"]
        assert any(words and not {SINGULAR[word] for word in words} & held for words in named)


def test_every_type_is_asked_and_no_knowledge_of_the_kinds_kept_apart():
    rng = random.Random(0)
    asked = [ask(sample_scene(rng), rng) for _ in range(2000)]
    types = Counter(each.type for each in asked)
    assert set(types) == {*QUESTION_TYPES, "knowledge"} and min(types.values()) > 40
    assert not NEVER_TWO_STEP & {each.subject for each in asked if each.type == "knowledge"}


def test_a_seed_gives_the_same_documents():
    first, again, other = ([document(rng) for _ in range(20)] for rng in map(random.Random, (1, 1, 2)))
    assert first == again != other


# ----------------------------------------------------------------------------------------------------- segments
def test_segments_of_questions():
    questions = [
        Question("kind", "what is the animal?", "a frog", ("frog",)),
        Question("count", "how many frogs are there?", "one", ("one",)),
    ]
    segments = question_segments(questions)
    assert [segment.role for segment in segments] == ["question", "answer"] * 2
    asked = "Question: what is the animal? Answer: a frog. Question: how many frogs are there? Answer: one"
    assert text_of(segments) == asked and segments[1].text == " a frog"
    assert text_of(join("a small frog", segments, first=True)) == f"{asked}. a small frog"
    assert text_of(join("a small frog", segments, first=False)) == f"a small frog. {asked}"
    assert [segment.role for segment in join("a frog", segments[:2], first=False)] == ["passage", "question", "answer"]


def test_segments_of_statements():
    segments = statement_segments(["the penguins are small", "there is one camel", "the background is the sea"])
    assert [(segment.text, segment.role) for segment in segments] == [
        ("the penguins are", "question"),
        (" small", "answer"),
        (". there is", "question"),
        (" one camel", "answer"),
        (". the background is", "question"),
        (" the sea", "answer"),
    ]
