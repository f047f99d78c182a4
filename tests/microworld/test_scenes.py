"""Scenes: no overlaps, clear relations, splits that share nothing."""

import hashlib
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, islice

import pytest

from microworld.drawings import ARTISTS, HELD_OUT_ARTIST
from microworld.world.kinds import KINDS
from microworld.world.scenes import (
    BACKGROUNDS,
    CANVAS,
    SIZES,
    SPLITS,
    Group,
    Scene,
    is_unseen_pair,
    relation,
    sample_scene,
    scenes,
    split_of,
)

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FROG = Group("frog", "twemoji", "small", 1, False, 30, 30)
SNAILS = Group("snail", "noto-v1", "large", 2, False, 100, 40)
KEY = Group("key", "fxemoji", "small", 1, False, 70, 125)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Scene]]:
    return {split: list(islice(scenes(split), 400)) for split in SPLITS}


def boxes(group: Group) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each drawing."""
    half = SIZES[group.size] / 2
    return [(x - half, y - half, x + half, y + half) for x, y in group.members()]


# -------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize(
    ("count", "turned", "centers", "half_width", "half_height"),
    [
        (1, False, [(50, 60)], 20, 20),
        (1, True, [(50, 60)], 20, 20),
        (2, False, [(28.4, 60), (71.6, 60)], 41.6, 20),
        (2, True, [(50, 38.4), (50, 81.6)], 20, 41.6),
        (3, False, [(50, 39.2), (28.4, 80.8), (71.6, 80.8)], 41.6, 40.8),
        (3, True, [(50, 80.8), (28.4, 39.2), (71.6, 39.2)], 41.6, 40.8),
    ],
)
def test_members_of_a_group(count, turned, centers, half_width, half_height):
    """Large drawings of 40 pixels: 0.54 of that is 21.6, and 0.52 is 20.8."""
    group = Group("frog", "twemoji", "large", count, turned, 50, 60)
    assert group.members() == [pytest.approx(center) for center in centers]
    assert group.half_extent == pytest.approx((half_width, half_height))


def test_drawings_never_overlap_and_stay_on_the_canvas(drawn):
    for scene in (scene for found in drawn.values() for scene in found):
        found = [box for group in scene.groups for box in boxes(group)]
        assert min(min(box) for box in found) > 3.9 and max(max(box) for box in found) < CANVAS - 3.9
        for (left, top, right, bottom), (left2, top2, right2, bottom2) in combinations(found, 2):
            assert right < left2 or right2 < left or bottom < top2 or bottom2 < top


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (130, 60, "right of"),
        (10, 60, "left of"),
        (70, 120, "below"),
        (70, 10, "above"),
        (101, 60, "right of"),  # 13 + 13 + 4 pixels are needed
        (99, 60, None),
        (130, 100, "right of"),  # 60 is 1.5 times 40
        (130, 101, None),
        (110, 120, "below"),
        (111, 120, None),
    ],
)
def test_relation(x, y, expected):
    frog, snail = replace(FROG, x=70, y=60), replace(FROG, kind="snail", x=x, y=y)
    assert relation(snail, frog) == expected
    assert relation(frog, snail) == INVERSE.get(expected)


def test_every_two_groups_have_one_relation(drawn):
    found = Counter()
    for scene in (scene for found in drawn.values() for scene in found):
        for a, b in combinations(scene.groups, 2):
            found[relation(a, b)] += 1
            assert relation(a, b) == INVERSE[relation(b, a)]
    assert set(found) == set(INVERSE) and min(found.values()) > 0.2 * found.total()


def test_place():
    """The snails are right of the frog, the key is below both."""
    scene = Scene((FROG, replace(SNAILS, count=1), KEY), "snow")
    assert [relation(a, b) for a, b in combinations(scene.groups, 2)] == ["left of", "above", "above"]
    assert [scene.place(group) for group in scene.groups] == [None, None, "at the bottom"]
    pair = Scene((FROG, SNAILS), "snow")
    assert [pair.place(group) for group in pair.groups] == ["on the left", "on the right"]
    assert Scene((FROG,), "snow").place(FROG) is None


# ------------------------------------------------------------------------------------------------------ sampling
def test_what_is_sampled():
    rng = random.Random(0)
    found = [sample_scene(rng) for _ in range(2000)]
    numbers = Counter(len(scene.groups) for scene in found)
    assert [numbers[n] / 2000 for n in (1, 2, 3)] == pytest.approx([0.3, 0.4, 0.3], abs=0.04)
    groups = [group for scene in found for group in scene.groups]
    assert {group.kind for group in groups} == set(KINDS) and {group.artist for group in groups} == set(ARTISTS)
    assert {scene.background for scene in found} == set(BACKGROUNDS)
    assert {(group.size, group.count) for group in groups} == {(size, n) for size in SIZES for n in (1, 2, 3)}
    assert all(len({group.kind for group in scene.groups}) == len(scene.groups) for scene in found)
    small = [sample_scene(rng, numbers=(1,), counts=(1,), artists=("noto",), canvas=48) for _ in range(200)]
    assert {(len(scene.groups), scene.groups[0].count, scene.groups[0].artist) for scene in small} == {(1, 1, "noto")}
    assert all(4 <= value <= 44 for scene in small for value in boxes(scene.groups[0])[0])


def test_a_seed_gives_the_same_scenes(drawn):
    for split in SPLITS:
        assert list(islice(scenes(split), 20)) == drawn[split][:20]
        assert list(islice(scenes(split, seed=1), 20)) != drawn[split][:20]


# -------------------------------------------------------------------------------------------------------- splits
def test_key_is_what_a_full_caption_tells():
    scene = Scene((SNAILS, FROG), "snow")
    assert scene.key() == "1 small frog, 2 large snail, left of, snow"  # the frog is left of the snails
    assert Scene((FROG, SNAILS), "snow").key() == scene.key()
    same = (replace(SNAILS, artist="emojione", turned=True, x=110), replace(FROG, x=25))
    assert Scene(same, "snow").key() == scene.key()
    swapped = (replace(SNAILS, x=45), replace(FROG, x=125))
    assert Scene(swapped, "snow").key() == "1 small frog, 2 large snail, right of, snow"
    assert Scene((FROG, KEY, SNAILS), "sea").key().startswith("1 small frog, 1 small key, 2 large snail, above, ")


def test_splits_share_no_scene(drawn):
    keys = {split: {scene.key() for scene in found} for split, found in drawn.items()}
    assert not any(keys[a] & keys[b] for a, b in combinations(SPLITS[:4], 2))
    assert not any(keys["unseen_artist"] & keys[split] for split in ("train", "validation", "unseen_pairs"))
    assert all(len(found) > 350 for found in keys.values())


def test_the_hash_of_the_key_decides(drawn):
    remainders = {"train": set(range(8)), "validation": {8}, "test": {9}, "unseen_artist": {9}}
    for split, expected in remainders.items():
        hashes = (hashlib.sha256(scene.key().encode()).hexdigest() for scene in drawn[split])
        assert {int(digest, 16) % 10 for digest in hashes} == expected
        assert {split_of(scene) for scene in drawn[split]} == {split.replace("unseen_artist", "test")}


def test_unseen_pairs_are_in_one_split_only(drawn):
    for split, found in drawn.items():
        for scene in found:
            kinds = sorted(group.kind for group in scene.groups)
            pairs = [*combinations(kinds, 2), *((kind, scene.background) for kind in kinds)]
            assert any(is_unseen_pair(*pair) for pair in pairs) == (split == "unseen_pairs")
    pairs = [*combinations(sorted(KINDS), 2), *((kind, ground) for kind in KINDS for ground in BACKGROUNDS)]
    assert sum(is_unseen_pair(*pair) for pair in pairs) / len(pairs) == pytest.approx(1 / 12, abs=0.015)


def test_one_artist_is_in_one_split_only(drawn):
    artists = {split: {g.artist for scene in found for g in scene.groups} for split, found in drawn.items()}
    assert artists.pop("unseen_artist") == {HELD_OUT_ARTIST}
    assert all(found == set(ARTISTS) for found in artists.values()) and HELD_OUT_ARTIST not in ARTISTS


def test_unknown_split():
    with pytest.raises(ValueError, match="split='dev' is unknown: choose one of train, validation, test"):
        next(scenes("dev"))
