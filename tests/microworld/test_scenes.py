"""Scenes: the splits are apart, relations are right, a seed gives the same scenes again."""

import random
from collections import Counter
from itertools import islice

import pytest

from microworld.world.scenes import (
    COLORS,
    GRID,
    SHAPES,
    SPLITS,
    UNSEEN_PAIRS,
    Group,
    Scene,
    sample_scene,
    scenes,
    split_of,
)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Scene]]:
    return {split: list(islice(scenes(split), 1500)) for split in SPLITS}


def test_splits_share_no_scene(drawn):
    keys = {split: {scene.key() for scene in found} for split, found in drawn.items()}
    assert all(not keys[a] & keys[b] for a in SPLITS for b in SPLITS if a != b)
    assert all(split_of(scene) == split for split, found in drawn.items() for scene in found)
    assert all(len(found) > 1000 for found in keys.values())  # and are no handful of scenes


def test_unseen_pairs_are_in_one_split_only(drawn):
    assert len(UNSEEN_PAIRS) == len(SHAPES) == len({shape for shape, _ in UNSEEN_PAIRS})
    for split, found in drawn.items():
        pairs = {(group.shape, group.color) for scene in found for group in scene.groups}
        if split == "unseen":
            assert all(any((g.shape, g.color) in UNSEEN_PAIRS for g in scene.groups) for scene in found)
            assert pairs >= UNSEEN_PAIRS
        elif split == "train":
            assert pairs == {(shape, color) for shape in SHAPES for color in COLORS} - UNSEEN_PAIRS
        else:
            assert not pairs & UNSEEN_PAIRS


def test_a_tenth_is_for_validation_and_a_tenth_for_test():
    rng = random.Random(0)
    counts = Counter(split_of(sample_scene(rng)) for _ in range(10_000))
    seen = sum(counts.values()) - counts["unseen"]
    assert counts["validation"] / seen == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / seen == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("cell_a", "cell_b", "relation"),
    [
        ((0, 0), (0, 2), "left of"),
        ((1, 2), (1, 1), "right of"),
        ((0, 1), (2, 1), "above"),
        ((2, 0), (1, 0), "below"),
    ],
)
def test_relation(cell_a, cell_b, relation):
    a, b = Group("star", "red", "small", 1, cell_a), Group("ring", "blue", "small", 1, cell_b)
    assert Scene((a, b), "white").relation(a, b) == relation


def test_key_is_what_a_reader_can_know():
    star, ring = Group("star", "red", "small", 1, (0, 0)), Group("ring", "blue", "large", 2, (0, 1))
    scene = Scene((star, ring), "gray")
    assert scene.key() == "1 small red star, 2 large blue ring, right of, gray"  # the ring is right of the star
    assert Scene((ring, star), "gray").key() == scene.key()
    farther = Scene((star, Group("ring", "blue", "large", 2, (0, 2))), "gray")
    assert farther.key() == scene.key()
    swapped = Scene((Group("star", "red", "small", 1, (0, 1)), Group("ring", "blue", "large", 2, (0, 0))), "gray")
    assert swapped.key() != scene.key() != Scene((star, ring), "white").key()
    assert Scene((star,), "gray").key() == "1 small red star, gray"


def test_groups_can_be_told_apart(drawn):
    pairs = [scene.groups for found in drawn.values() for scene in found if len(scene.groups) == 2]
    assert len(pairs) > 0.6 * 1500 * len(SPLITS)
    for a, b in pairs:
        assert a.shape != b.shape and a.color != b.color and a.cell != b.cell
        assert a.cell[0] == b.cell[0] or a.cell[1] == b.cell[1]
        assert all(0 <= place < GRID for place in a.cell + b.cell)


def test_a_seed_gives_the_same_scenes(drawn):
    assert list(islice(scenes("test"), 20)) == drawn["test"][:20]
    assert list(islice(scenes("test", seed=1), 20)) != drawn["test"][:20]


def test_unknown_split():
    with pytest.raises(ValueError, match="split='dev' is unknown: choose one of train, validation, test, unseen"):
        next(scenes("dev"))
