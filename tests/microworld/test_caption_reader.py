"""The judge of captions: what is true passes, and every kind of falsehood is caught."""

import random
from dataclasses import replace

import pytest

from microworld.world.caption_reader import caption_is_true, read_caption
from microworld.world.kinds import CATEGORY, KINDS
from microworld.world.language import caption
from microworld.world.scenes import BACKGROUNDS, COUNTS, SIZES, SPLITS, Group, Scene, scenes

FROG = Group("frog", "twemoji", "small", 1, False, 30, 30)
SNAILS = Group("snail", "noto-v1", "large", 2, False, 100, 40)  # right of the frog
PAIR = Scene((FROG, SNAILS), "snow")
TREE = Scene((Group("palm tree", "noto", "large", 1, False, 70, 70),), "brick wall")
TOLD = {"brief": {"kind", "count"}, "some": {"kind", "count", "size", "background"}}
TOLD["full"] = TOLD["some"] | {"exchange"}


def changes(scene: Scene, rng: random.Random) -> list[tuple[str, Scene]]:
    """The scene with each single thing changed, and what was changed."""
    found = [("background", replace(scene, background=rng.choice([b for b in BACKGROUNDS if b != scene.background])))]
    present = {group.kind for group in scene.groups}
    for i, group in enumerate(scene.groups):
        alike = [kind for kind in KINDS if kind not in present and CATEGORY[kind] == CATEGORY[group.kind]]
        values = {"kind": [rng.choice(alike), rng.choice([kind for kind in KINDS if kind not in present])]}
        values |= {"count": set(COUNTS) - {group.count}, "size": set(SIZES) - {group.size}}
        for trait, others in values.items():
            for value in others:
                changed = replace(group, **{trait: value})
                found.append((trait, replace(scene, groups=(*scene.groups[:i], changed, *scene.groups[i + 1 :]))))
        rest = (*scene.groups[:i], *scene.groups[i + 1 :])
        found.append(("kind", replace(scene, groups=rest)))
        for j, other in enumerate(rest):
            swapped = (replace(group, kind=other.kind), replace(other, kind=group.kind))
            found.append(("exchange", replace(scene, groups=(*rest[:j], *rest[j + 1 :], *swapped))))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_is_true_of_its_scene_and_false_of_a_changed_one(split):
    rng, stream = random.Random(split), scenes(split)
    for _ in range(25):
        scene = next(stream)
        for detail, told in TOLD.items():
            text = caption(scene, rng, detail)
            assert caption_is_true(text, scene), text
            for name, other in changes(scene, rng):
                if name in told:
                    assert not caption_is_true(text, other), (text, other)
        same = tuple(replace(group, artist="noto", turned=not group.turned) for group in scene.groups)
        assert caption_is_true(caption(scene, rng, "some"), replace(scene, groups=same[::-1]))


@pytest.mark.parametrize(
    "text",
    [
        "a small frog left of two large snails in the snow",
        "two snails and a frog",
        "in the snow there are two snails and one small frog. the frog is left of the snails",
        "a picture of two large snails and a frog",
        "a frog and two snails in the snow. the snails are large. the frog is small. the snails are right of the frog",
        "there is a frog. there are two snails. the background is the snow",
        "  a frog,  two snails ",
        "one frog and two snails. the large snails are right of the small frog",
    ],
)
def test_true_captions(text):
    assert caption_is_true(text, PAIR)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a small frog in the snow",  # a group is missing
        "the frog is left of the snails",  # neither is introduced
        "frog and snails",
        "small frog and two snails",
        "a turtle and two snails",  # another kind
        "a frog, two snails and a key",  # a group too many
        "a frog and two snails. the key is small",
        "a frog and two snails. the frog is left of the key",
        "a frog and three snails",  # another number
        "two frogs and two snails",
        "a frog and two snails. the frogs are small",
        "a frog and one snail",
        "a large frog and two snails",  # another size
        "a frog and two small snails",
        "a frog and two snails. the snails are small",
        "a frog and two snails. the small snails are right of the frog",
        "a frog right of two snails",  # another relation
        "a frog above two snails",
        "two snails left of a frog",
        "a frog and two snails. the snails are below the frog",
        "a frog left of two snails. the frog is right of the snails",
        "a frog and two snails. the frog is left of the frog",
        "a frog and two snails on the sea",  # another background
        "on paper there is a frog and two snails",
        "a frog and two snails. the background is a meadow",
        "a frog and a frog and two snails",  # a group twice
        "a frog and two snails. a frog",
        "one frog, a small frog and two snails",
    ],
)
def test_false_captions(text):
    assert not caption_is_true(text, PAIR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a palm tree and a large", "cut short"),
        ("a palm tree left of", "cut short"),
        ("a palm tree left of. two keys", "cut short"),
        ("a palm tree left of and two keys", "cut short"),
        ("a palm tree left of the", "cut short|unknown word"),
        ("a large. palm tree", "cut short"),
        ("a on a brick wall", "cut short"),
        ("a palm tree left of on a brick wall", "cut short"),
        ("a palm tree left of right of two keys", "cut short"),
        ("a palm tree. the", "unknown word 'the'"),
        ("a palm tree and", "unknown word 'and'"),
        ("a palm tree on a brick wall. there is", "unknown word 'there'"),
        ("a palm tree,", "unknown word ','"),
        ("a palm tree. the palm tree is", "unknown word 'is'"),
        ("a palm", "unknown word 'palm'"),
        ("a palm tree on a brick", "unknown word 'on'"),
        ("a Palm tree", "unknown word 'Palm'"),
        ("a dog", "unknown word 'dog'"),
        ("a red palm tree", "unknown word 'red'"),
        ("a monkeywrench", "unknown word 'monkeywrench'"),
        ("a palm tree grows on warm coasts", "unknown word 'grows'"),
        ("a palm tree None a key", "unknown word 'None'"),
        ("left of two keys", "a relation without a subject"),
        ("a palm tree. left of two keys", "a relation without a subject"),
        ("a palm tree. are large", "a size without a subject"),
        ("a palm tree on a brick wall. the background is the snow", "two backgrounds"),
        ("a palm tree a picture of", "an opening after the beginning"),
        ("a palm trees", "a number that disagrees with its noun"),
        ("two palm tree", "a number that disagrees with its noun"),
        ("two a palm tree", "a noun with two counts"),
        ("a small large palm tree", "a noun with two sizes"),
    ],
)
def test_unreadable_captions(text, message):
    with pytest.raises(ValueError, match=message):
        read_caption(text)
    assert not caption_is_true(text, TREE)


def test_claims_of_a_caption():
    claims = read_caption(
        "a small palm tree and two keys in the snow. the keys are large. the keys are left of the palm tree"
    )
    said = [(mention.kind, mention.plural, mention.size, mention.count) for mention in claims.mentions]
    assert said == [
        ("palm tree", False, "small", 1),
        ("key", True, None, 2),
        ("key", True, None, None),
        ("key", True, "large", None),
        ("key", True, None, None),
        ("palm tree", False, None, None),
    ]
    assert claims.relations == [("key", "left of", "palm tree")] and claims.background == "snow"
