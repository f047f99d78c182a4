"""Captions and their judge, questions and their answers, facts: on scenes built by hand."""

import random
from dataclasses import replace

import pytest

from microworld.world.caption_reader import caption_is_true, read_caption
from microworld.world.language import (
    LIKES,
    LIVES,
    QUESTION_TYPES,
    caption,
    fact_question,
    facts,
    knowledge_question,
    noun_phrase,
    question,
    statements,
)
from microworld.world.scenes import BACKGROUNDS, COLORS, COUNTS, SHAPES, SIZES, Group, Scene, sample_scene

STAR = Group("star", "orange", "large", 1, (0, 2))
CROSSES = Group("cross", "blue", "small", 2, (0, 0))
SCENE = Scene((STAR, CROSSES), "gray")  # the crosses are left of the star
ALONE = Scene((STAR,), "gray")


def asked(scene: Scene, kind: str, group: Group | None = None, times: int = 200) -> dict[str, str]:
    """Every question of a type that is drawn, with its answer."""
    drawn = [question(scene, kind, random.Random(seed), group) for seed in range(times)]
    assert all(q.kind == kind for q in drawn)
    return {q.question: q.answer for q in drawn}


def changes(scene: Scene) -> list[Scene]:
    """The scene with each single thing changed to each other value, and with the groups in each other's place."""
    traits = {"shape": SHAPES, "color": COLORS, "size": SIZES, "count": COUNTS}
    changed = [replace(scene, background=other) for other in BACKGROUNDS if other != scene.background]
    for i, group in enumerate(scene.groups):
        for trait, values in traits.items():
            taken = {getattr(g, trait) for g in (scene.groups if trait == "shape" else (group,))}
            for value in set(values) - taken:
                groups = list(scene.groups)
                groups[i] = replace(group, **{trait: value})
                changed.append(replace(scene, groups=tuple(groups)))
    if len(scene.groups) == 2:
        a, b = scene.groups
        changed += [Scene((replace(a, cell=b.cell), replace(b, cell=a.cell)), scene.background)]
        changed += [Scene((a,), scene.background), Scene((b,), scene.background)]
    return changed


# ------------------------------------------------------------------------------------------------------- captions


def test_captions_of_a_scene_are_true_of_it():
    rng = random.Random(0)
    for _ in range(2000):
        scene = sample_scene(rng)
        assert caption_is_true(caption(scene, rng), scene)


def test_full_captions_are_false_after_any_change():
    rng = random.Random(1)
    for _ in range(100):
        scene = sample_scene(rng)
        text = caption(scene, rng, full=True)
        assert not [other for other in changes(scene) if caption_is_true(text, other)]


def test_brief_captions_may_be_silent_but_name_all_groups():
    rng = random.Random(2)
    texts = {caption(SCENE, rng, full=False) for _ in range(200)}
    assert "an orange star and two small blue crosses" in texts
    assert "two blue crosses left of a large orange star" in texts
    assert all("gray" not in text and "star" in text and "crosses" in text for text in texts)


def test_paraphrases_of_a_scene():
    rng = random.Random(3)
    texts = {caption(SCENE, rng, full=True) for _ in range(1000)}
    # Four forms, either group first; noun first, either group and either trait first; "a star" and "one star".
    assert len(texts) == 2 * 16
    assert "on a gray background there are two small blue crosses left of a large orange star" in texts
    assert (
        "a large orange star and two small blue crosses. the star is right of the crosses. the background is gray"
        in texts
    )
    assert (
        "two crosses and a star. the crosses are small and blue. the star is orange and large. "
        "the crosses are left of the star. the background is gray" in texts
    )
    articles = {
        "a star. the star is large and orange. the background is gray",
        "a star. the star is orange and large. the background is gray",
        "a large orange star on a gray background",
        "on a gray background there is a large orange star",
        "a large orange star. the background is gray",
    }
    numerals = {text.replace("a star", "one star").replace("a large", "one large") for text in articles}
    drawn = [caption(ALONE, rng, full=True) for _ in range(3000)]
    assert set(drawn) == articles | numerals
    assert sum("one" in text for text in drawn) / 3000 == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    "text",
    [
        "two small blue crosses left of a large orange star on a gray background",
        "an orange star and two crosses",
        "two crosses and one star. the crosses are left of the star",
        "there is a star. there are two blue crosses. the star is right of the crosses",
        "a star and two crosses. the small crosses are left of the orange star",
        "a star and two crosses. the crosses are small. the star is orange and large",
        "a star  on gray background. two crosses",
    ],
)
def test_right_captions(text):
    assert caption_is_true(text, SCENE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a large orange star on a gray background",  # an object is missing
        "the star is right of the crosses",  # neither is introduced
        "an orange star left of two blue crosses",  # wrong relation
        "an orange star above two blue crosses",
        "a star and two crosses. the crosses are right of the star",
        "a red star and two blue crosses",  # wrong trait
        "a small star and two crosses",
        "a star and three crosses",
        "two stars and two crosses",
        "a star and two crosses on a white background",
        "a star and two crosses. the background is brown",
        "a star and two crosses. the crosses are orange",
        "a star and two crosses. the star is orange and small",
        "a star, two crosses and a ring",  # an object that is not there
        "a star and two crosses and a ring",
        "a star and two crosses. the ring is left of the star",
        "a star and a star and two crosses",  # one object twice
        "an orange star and two crosses. a star",
        "a star and two crosses. the red star is right of the crosses",  # wrong on the second mention
        "a star and two crosses. the star is right of the star",
        "a star and two crosses. the crosses is the star",
    ],
)
def test_wrong_captions(text):
    assert not caption_is_true(text, SCENE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a large orange dog", "unknown word 'dog'"),
        ("a star, and two crosses", "unknown word ','"),
        ("a Star", "unknown word 'Star'"),
        ("a star and a large orange", "cut short"),
        ("a star right of", "cut short"),
        ("a star right of. two crosses", "cut short"),
        ("a large. star", "cut short"),
        ("a star right of and two crosses", "cut short"),
        ("small red on a gray background", "cut short"),
        ("a star on a", "unknown word 'on'"),
        ("a white star", "unknown word 'white'"),
        ("right of two crosses", "a relation without a subject"),
        ("a star. right of two crosses", "a relation without a subject"),
        ("a star on a gray background. the background is white", "two backgrounds"),
        ("a stars", "a number that disagrees with its noun"),
        ("two star", "a number that disagrees with its noun"),
        ("a red orange star", "a noun with two colors"),
        ("two a red star", "a noun with two counts"),
        ("a small large star", "a noun with two sizes"),
        ("the star is made of cheese", "unknown word 'is'"),
        ("a star. are red", "a trait without a subject"),
        ("a star is red and blue", "a noun with two colors"),
    ],
)
def test_unreadable_captions(text, message):
    with pytest.raises(ValueError, match=message):
        read_caption(text)
    assert not caption_is_true(text, ALONE)


def test_claims_of_a_caption():
    claims = read_caption(
        "an orange star and two small crosses. the crosses are left of the star. the background is gray"
    )
    star, crosses, crosses_again, star_again = claims.mentions
    assert (star.shape, star.plural, star.color, star.size, star.count) == ("star", False, "orange", None, 1)
    assert (crosses.shape, crosses.plural, crosses.color, crosses.size, crosses.count) == (
        "cross",
        True,
        None,
        "small",
        2,
    )
    assert (crosses_again.shape, crosses_again.count, star_again.shape) == ("cross", None, "star")
    assert claims.relations == [("cross", "left of", "star")] and claims.background == "gray"


def test_words():
    assert noun_phrase(STAR) == "a large orange star" and noun_phrase(STAR, size=False) == "an orange star"
    assert noun_phrase(STAR, numeral=True) == "one large orange star"
    assert noun_phrase(CROSSES) == noun_phrase(CROSSES, numeral=True) == "two small blue crosses"


def test_statements():
    assert set(statements(SCENE)) == {
        "the background is gray",
        "the star is orange",
        "the star is large",
        "there is one star",
        "the orange object is a star",
        "the crosses are blue",
        "the crosses are small",
        "there are two crosses",
        "the blue objects are crosses",
        "the star is right of the crosses",
        "the crosses are left of the star",
    }
    assert len(statements(ALONE)) == 5


# ------------------------------------------------------------------------------------------------------ questions


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("background", {"what color is the background?": "gray"}),
        ("color", {"what color is the star?": "orange", "what color are the crosses?": "blue"}),
        ("shape", {"what is the orange object?": "a star", "what are the blue objects?": "crosses"}),
        ("size", {"what size is the star?": "large", "what size are the crosses?": "small"}),
        ("count", {"how many stars are there?": "one", "how many crosses are there?": "two"}),
        (
            "relation",
            {
                "what is right of the crosses?": "the star",
                "what is left of the star?": "the crosses",
                "where is the star?": "right of the crosses",
                "where are the crosses?": "left of the star",
            },
        ),
        (
            "knowledge",
            {
                "what does the orange object like?": "a star likes music",
                "where does the orange object live?": "a star lives in caves",
                "what do the blue objects like?": "crosses like bread",
                "where do the blue objects live?": "crosses live in rivers",
            },
        ),
    ],
)
def test_questions_and_answers(kind, expected):
    assert asked(SCENE, kind) == expected


def test_yes_no_questions():
    found = asked(SCENE, "yes/no", STAR, times=2000)
    absent = {f"is there any {shape}?": "no" for shape in SHAPES if shape not in ("star", "cross")}
    assert found == absent | {
        "is the star orange?": "yes",
        "is the star blue?": "no",  # the crosses' colour: the hard negative
        "is the star large?": "yes",
        "is the star small?": "no",
        "is there one star?": "yes",
        "are there two stars?": "no",
        "are there three stars?": "no",
        "is there any star?": "yes",
    }
    lone = asked(ALONE, "yes/no", times=2000)
    assert {f"is the star {color}?" for color in COLORS} <= lone.keys()
    answers = [question(SCENE, "yes/no", random.Random(seed)).answer for seed in range(2000)]
    assert answers.count("yes") / 2000 == pytest.approx(0.5, abs=0.04)


def test_questions_that_a_scene_does_not_allow():
    assert question(ALONE, "relation", random.Random(0)) is None
    assert all(question(ALONE, kind, random.Random(0)) for kind in QUESTION_TYPES if kind != "relation")
    with pytest.raises(ValueError, match="kind='colour' is unknown: choose one of color"):
        question(ALONE, "colour", random.Random(0))


def test_questions_about_one_group():
    assert asked(SCENE, "color", CROSSES) == {"what color are the crosses?": "blue"}
    assert {question(SCENE, k, random.Random(0), STAR).subject for k in QUESTION_TYPES if k != "background"} == {
        "star"
    }


# ----------------------------------------------------------------------------------------------------------- facts


def test_facts():
    assert facts("cross", plural=True) == ("crosses like bread", "crosses live in rivers")
    assert facts("arrow", plural=False) == ("an arrow likes chess", "an arrow lives in tunnels")
    assert len(set(LIKES.values()) | set(LIVES.values())) == 2 * len(SHAPES)  # no fact fits two shapes
    found = {(q.question, q.answer) for q in (fact_question("cross", random.Random(seed)) for seed in range(40))}
    assert found == {
        ("what do crosses like?", "crosses like bread"),
        ("where do crosses live?", "crosses live in rivers"),
        ("what does a cross like?", "a cross likes bread"),
        ("where does a cross live?", "a cross lives in rivers"),
    }


def test_knowledge_questions_do_not_name_the_shape():
    for seed in range(20):
        asked = knowledge_question(CROSSES, random.Random(seed))
        assert "cross" not in asked.question and asked.subject == "cross"


def test_facts_are_never_in_captions():
    rng = random.Random(4)
    words = {*LIKES.values(), *LIVES.values(), "like", "likes", "live", "lives"}
    for _ in range(300):
        scene = sample_scene(rng)
        assert not words & set(" ".join([caption(scene, rng), *statements(scene)]).replace(".", "").split())
