"""Captions, statements, questions and their accepted answers: on scenes built by hand."""

import random
import re
from dataclasses import replace

import pytest

from microworld.world.kinds import CATEGORIES, CATEGORY, FACTS, KINDS, PLURAL
from microworld.world.language import (
    GROUND,
    QUESTION_TYPES,
    Question,
    caption,
    fact_question,
    is_right,
    question,
    references,
    statements,
)
from microworld.world.scenes import SIZES, Group, Scene, sample_scene

FROG = Group("frog", "twemoji", "small", 1, False, 30, 30)
SNAILS = Group("snail", "noto-v1", "large", 2, False, 100, 40)  # right of the frog
KEY = Group("key", "fxemoji", "small", 1, False, 70, 125)  # below both
ALONE, PAIR, THREE = Scene((SNAILS,), "night sky"), Scene((FROG, SNAILS), "snow"), Scene((FROG, SNAILS, KEY), "snow")
# Three small animals in a row: nothing but its kind tells the one in the middle from the others.
ROW = Scene(
    tuple(Group(kind, "noto", "small", 1, False, x, 70) for kind, x in (("bee", 20), ("cow", 70), ("pig", 120))),
    "meadow",
)


def asked(scene: Scene, type: str, group: Group | None = None, times: int = 300) -> dict[str, str]:
    """Every question of a type that is drawn, with its answer."""
    drawn = [question(scene, type, random.Random(seed), group) for seed in range(times)]
    assert all(each.type == type for each in drawn)
    return {each.text: each.answer for each in drawn}


def accepted(scene: Scene, type: str, group: Group, text: str) -> set[str]:
    """The accepted answers to one of the questions of a type."""
    drawn = (question(scene, type, random.Random(seed), group) for seed in range(300))
    return set(next(each.accepted for each in drawn if each.text == text))


# ------------------------------------------------------------------------------------------------------- captions
def captions(scene: Scene, detail: str | None = None, times: int = 3000) -> list[str]:
    rng = random.Random(0)
    return [caption(scene, rng, detail) for _ in range(times)]


def test_captions_of_one_group():
    assert set(captions(ALONE, "brief")) == {"two snails", "two snails in the night sky"}
    some = {
        "two large snails in the night sky",
        "in the night sky there are two large snails",
        "a picture of two large snails in the night sky",
    }
    assert set(captions(ALONE, "some")) == some
    assert set(captions(ALONE, "full")) == some | {"two snails in the night sky. the snails are large"}
    frog = captions(Scene((FROG,), "paper"), "some")
    assert "a small frog on paper" in frog and "on paper there is one small frog" in frog
    assert sum("one" in text for text in frog) / len(frog) == pytest.approx(1 / 3, abs=0.03)


def test_captions_of_two_groups():
    """Full: 3 frames, either group first, "a" or "one", a relation within (12) or in a sentence, of either group (24);
    noun first, either group first, "a" or "one", a relation of either group (8)."""
    full = set(captions(PAIR, "full"))
    assert len(full) == 12 + 24 + 8
    assert full >= {
        "a small frog left of two large snails in the snow",
        "in the snow there are two large snails right of one small frog",
        "a picture of a small frog and two large snails in the snow. the snails are right of the frog",
        "two snails and one frog in the snow. the snails are large. the frog is small. the frog is left of the snails",
    }
    assert set(captions(PAIR, "brief")) >= {"two snails right of a frog", "one frog and two snails in the snow"}


def test_captions_of_three_groups():
    brief = captions(THREE, "brief")
    assert "a key, two snails and a frog in the snow" in brief and not any("left" in text for text in brief)
    relations = {"left of the snails", "right of the frog", "below the frog", "above the key"}
    full = captions(THREE, "full")
    assert all(
        text.count("the frog is") + text.count("the snails are") + text.count("the key is") >= 3 for text in full
    )
    assert all(any(found in text for text in full) for found in relations)
    assert any("a small frog, two large snails and a small key" in text for text in full)


def test_a_little_more_than_half_of_the_captions_tell_sizes():
    texts = captions(ALONE)
    assert sum("large" in text for text in texts) / len(texts) == pytest.approx(0.55, abs=0.03)


def test_statements():
    assert sorted(statements(PAIR)) == [
        "the animal on the left is a frog",
        "the animals on the right are snails",
        "the background is the snow",
        "the frog is left of the snails",
        "the frog is small",
        "the large animals are snails",
        "the small animal is a frog",
        "the snails are large",
        "the snails are right of the frog",
        "there are two snails",
        "there is one frog",
    ]


def test_facts_are_never_in_captions_or_statements():
    rng = random.Random(4)
    phrases = {fact.phrase for kind in KINDS for fact in FACTS[kind]}
    for _ in range(200):
        scene = sample_scene(rng)
        text = ". ".join([caption(scene, rng, "full"), *statements(scene)])
        assert not any(re.search(rf"\b{phrase}\b", text) for phrase in phrases - set(GROUND.values()))


# ----------------------------------------------------------------------------------------------------- references
@pytest.mark.parametrize(
    ("scene", "group", "with_category", "without"),
    [
        (ALONE, SNAILS, ["the animals"], ["the things"]),
        (
            PAIR,
            FROG,
            ["the animal on the left", "the small animal"],
            ["the thing on the left", "the small thing"],
        ),
        (THREE, FROG, ["the small animal"], []),  # the key is small too
        (THREE, SNAILS, ["the large animals"], ["the large things"]),
        (THREE, KEY, ["the tool", "the tool at the bottom", "the small tool"], ["the thing at the bottom"]),
        (ROW, ROW.groups[0], ["the animal on the left"], ["the thing on the left"]),
        (ROW, ROW.groups[1], [], []),
    ],
)
def test_references(scene, group, with_category, without):
    assert references(scene, group) == with_category
    assert references(scene, group, category=False) == without


# ------------------------------------------------------------------------------------------------------ questions
@pytest.mark.parametrize(
    ("type", "group", "expected"),
    [
        ("kind", FROG, {"what is the small animal?": "a frog"}),
        ("kind", SNAILS, {"what are the large animals?": "snails", "what are the large things?": "snails"}),
        (
            "kind",
            KEY,
            {
                "what is the tool?": "a key",
                "what is the small tool?": "a key",
                "what is the tool at the bottom?": "a key",
                "what is the thing at the bottom?": "a key",
            },
        ),
        ("category", FROG, {"what kind of thing is left of the snails?": "an animal"}),
        (
            "category",
            SNAILS,
            {
                "what kind of thing are the large things?": "animals",
                "what kind of thing is right of the frog?": "animals",
            },
        ),
        (
            "category",
            KEY,
            {
                "what kind of thing is the thing at the bottom?": "a tool",
                "what kind of thing is below the frog?": "a tool",
                "what kind of thing is below the snails?": "a tool",
            },
        ),
        ("count", SNAILS, {"how many snails are there?": "two", "how many animals are there?": "three"}),
        ("count", KEY, {"how many keys are there?": "one", "how many tools are there?": "one"}),
        ("size", SNAILS, {"what size are the snails?": "large", "are the snails large or small?": "large"}),
        ("size", KEY, {"what size is the key?": "small", "is the key large or small?": "small"}),
        (
            "relation",
            FROG,
            {
                "what is left of the snails?": "the frog",
                "where is the frog relative to the snails?": "left of the snails",
                "where is the frog relative to the key?": "above the key",
            },
        ),
        (
            "relation",
            SNAILS,
            {
                "what is right of the frog?": "the snails",
                "where are the snails relative to the frog?": "right of the frog",
                "where are the snails relative to the key?": "above the key",
            },
        ),
        ("background", FROG, {"what is the background?": "the snow", "where is this?": "the snow"}),
        (
            "knowledge",
            SNAILS,
            {
                "where do the large animals live?": "snails live under wet leaves",
                "what do the large animals eat?": "snails eat lettuce",
            },
        ),
    ],
)
def test_questions_about_three_groups(type, group, expected):
    assert asked(THREE, type, group) == expected


def test_questions_about_one_group():
    answers = {"what are the animals?", "what are the things?", "what is in the picture?", "what is in the night sky?"}
    assert asked(ALONE, "kind") == dict.fromkeys(answers, "snails")
    assert asked(ALONE, "category") == {"what kind of thing are the things?": "animals"}
    assert asked(ALONE, "background").keys() == {"what is the background?", "where is this?"}
    assert asked(Scene((KEY,), "sea"), "knowledge") == {
        "what is the tool used for?": "a key is used for opening locks",
        "who uses the tool?": "a key is used by janitors",
    }


def test_questions_that_a_scene_does_not_allow():
    assert question(ALONE, "relation", random.Random(0)) is None
    middle = ROW.groups[1]
    for type in ("kind", "category", "knowledge"):
        assert question(ROW, type, random.Random(0), middle) is None
    many = Scene((replace(FROG, count=3), SNAILS), "sea")  # five animals have no number word
    assert asked(many, "count", SNAILS) == {"how many snails are there?": "two"}
    with pytest.raises(ValueError, match="type='color' is unknown: choose one of kind, category"):
        question(ALONE, "color", random.Random(0))


def test_yes_no_questions():
    articles = {name: f"an {name}" if name[0] in "aeiou" else f"a {name}" for name in CATEGORIES}
    expected = {f"is there any {kind}?": "no" for kind in KINDS if kind not in ("frog", "snail")}
    expected |= {f"is there {articles[name]}?": "no" for name in CATEGORIES if name not in ("animal", "tool")}
    grounds = ("in a meadow", "on a beach", "on the sea", "in the night sky", "on a brick wall", "on paper")
    expected |= {f"is the key {where}?": "no" for where in (*grounds, "on a wooden floor")}
    for other in ("frog", "snails"):
        expected |= {f"is the key {word} the {other}?": "no" for word in ("left of", "right of", "above")}
        expected |= {f"is the key below the {other}?": "yes"}
    expected |= {"are there two keys?": "no", "are there three keys?": "no", "is the key large?": "no"}
    expected |= {"is there any key?": "yes", "is there a tool?": "yes", "is there one key?": "yes"}
    expected |= {"is the key small?": "yes", "is the key in the snow?": "yes"}
    assert asked(THREE, "yes/no", KEY, times=8000) == expected
    assert {"are the snails large?", "are there two snails?", "are the snails right of the frog?"} <= set(
        asked(PAIR, "yes/no", SNAILS, times=1000)
    )


@pytest.mark.parametrize("scene", [ALONE, PAIR, THREE])
def test_half_of_the_yes_no_answers_are_yes(scene):
    answers = [question(scene, "yes/no", random.Random(seed)).answer for seed in range(2000)]
    assert answers.count("yes") / 2000 == pytest.approx(0.5, abs=0.04)


def test_questions_do_not_tell_their_answers():
    rng = random.Random(5)
    for _ in range(300):
        scene = sample_scene(rng)
        for type in (*QUESTION_TYPES, "knowledge"):
            found = question(scene, type, rng)
            if found is None or type == "yes/no":
                continue
            hidden = {*found.accepted}
            if type in ("kind", "category", "knowledge"):
                hidden |= {found.subject, PLURAL[found.subject]}
            if type == "category":
                hidden |= {CATEGORY[found.subject]}
            if type == "size":
                assert set(SIZES) <= set(re.findall("[a-z]+", found.text)) or not set(SIZES) & {*found.text.split()}
                continue
            assert not any(re.search(rf"\b{re.escape(words)}\b", found.text) for words in hidden), found


# -------------------------------------------------------------------------------------------------------- answers
@pytest.mark.parametrize(
    ("type", "group", "text", "expected"),
    [
        ("kind", SNAILS, "what are the large animals?", {"snail", "snails"}),
        (
            "category",
            KEY,
            "what kind of thing is below the frog?",
            {"tool", "tools", "key is a tool", "keys are tools"},
        ),
        ("count", SNAILS, "how many snails are there?", {"two"}),
        ("size", SNAILS, "what size are the snails?", {"large"}),
        ("relation", FROG, "what is left of the snails?", {"frog", "frogs"}),
        (
            "relation",
            FROG,
            "where is the frog relative to the snails?",
            {"left of the snails", "left of the snail"},
        ),
        ("background", FROG, "where is this?", {"snow"}),
        (
            "knowledge",
            FROG,
            "where does the small animal live?",
            {"frog lives in a pond", "frogs live in a pond", "in a pond", "lives in a pond", "live in a pond"},
        ),
    ],
)
def test_accepted_answers(type, group, text, expected):
    assert accepted(THREE, type, group, text) == expected


def test_is_right():
    assert all(is_right(answer, ("frog", "frogs")) for answer in ("frog", " A frog ", "the Frogs", "an frog"))
    assert not any(is_right(answer, ("frog", "frogs")) for answer in ("", "a", "a small frog", "frog.", "snail"))
    assert is_right("the sea", ("sea",)) and is_right("a hot grill", ("hot grill",))


def test_questions_about_facts():
    found = [fact_question("strawberry", random.Random(seed)) for seed in range(300)]
    assert {each.text: each.answer for each in found} == {
        "where does a strawberry come from?": "a strawberry comes from low garden beds",
        "where do strawberries come from?": "strawberries come from low garden beds",
        "how is a strawberry eaten?": "a strawberry is eaten with cream",
        "how are strawberries eaten?": "strawberries are eaten with cream",
        "what kind of thing is a strawberry?": "a strawberry is a food",
        "what kind of thing are strawberries?": "strawberries are foods",
    }
    assert sum("kind of thing" in each.text for each in found) / 300 == pytest.approx(1 / 3, abs=0.08)
    category = Question("fact", "what kind of thing is a key?", "a key is a tool", ("key is a tool",), "key")
    assert category in [fact_question("key", random.Random(seed)) for seed in range(50)]
