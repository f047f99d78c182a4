"""The kinds, their plurals, categories and facts."""

from collections import Counter
from itertools import combinations

import pytest

from microworld.world.kinds import (
    CATEGORIES,
    CATEGORY,
    FACTS,
    KINDS,
    NEVER_TWO_STEP,
    PLURAL,
    QUESTIONS,
    article,
    category_sentence,
)


def test_sixty_kinds_in_eight_categories():
    assert len(KINDS) == len(set(KINDS)) == 60
    assert Counter(CATEGORY.values()) == {
        "animal": 18,
        "food": 10,
        "vehicle": 8,
        "plant": 6,
        "instrument": 5,
        "tool": 5,
        "building": 4,
        "garment": 4,
    }


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        ("octopus", "octopuses"),
        ("bus", "buses"),
        ("cactus", "cactuses"),
        ("dress", "dresses"),
        ("church", "churches"),
        ("strawberry", "strawberries"),
        ("factory", "factories"),
        ("monkey", "monkeys"),
        ("key", "keys"),
        ("palm tree", "palm trees"),
        ("rose", "roses"),
        ("food", "foods"),
        ("thing", "things"),
    ],
)
def test_plurals(singular, plural):
    assert PLURAL[singular] == plural


def test_no_plural_is_another_word():
    words = (*KINDS, *CATEGORIES, "thing")
    assert set(PLURAL) == set(words) and len({*PLURAL, *PLURAL.values()}) == 2 * len(words)


def test_articles():
    assert [article(word) for word in ("owl", "octopus", "large owl", "apple", "bus")] == [
        "an owl",
        "an octopus",
        "a large owl",
        "an apple",
        "a bus",
    ]


def test_every_kind_has_two_facts_that_no_other_kind_of_its_category_has():
    assert all(len({fact.topic for fact in FACTS[kind]}) == 2 for kind in KINDS)
    assert {fact.topic for kind in KINDS for fact in FACTS[kind]} == set(QUESTIONS) - {"category"}
    phrases = {kind: [(fact.topic, fact.phrase) for fact in FACTS[kind]] for kind in KINDS}
    for a, b in combinations(KINDS, 2):
        same_topics = [topic for topic, _ in phrases[a]] == [topic for topic, _ in phrases[b]]
        assert same_topics == (CATEGORY[a] == CATEGORY[b])
        assert not set(phrases[a]) & set(phrases[b])


def test_sentences():
    home, diet = FACTS["octopus"]
    assert home.sentence("octopus", plural=False) == "an octopus lives on the sea floor"
    assert diet.sentence("octopus", plural=True) == "octopuses eat crabs"
    assert [fact.sentence("violin", plural=True) for fact in FACTS["violin"]] == [
        "violins are played with a bow",
        "violins are heard in orchestras",
    ]
    assert category_sentence("octopus", plural=False) == "an octopus is an animal"
    assert category_sentence("strawberry", plural=True) == "strawberries are foods"


def test_a_fifth_of_the_kinds_never_appears_in_two_steps():
    assert len(NEVER_TWO_STEP) == 12 and set(KINDS) > NEVER_TWO_STEP
    assert {CATEGORY[kind] for kind in NEVER_TWO_STEP} == set(CATEGORIES)
