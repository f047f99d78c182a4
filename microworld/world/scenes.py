"""Scenes: one to three groups of drawings anywhere on a background, sampled from a seed.

A scene is pure data. `rendering.py` draws it, `language.py` describes it. Lengths are in pixels of the canvas.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from microworld.drawings import ARTISTS, HELD_OUT_ARTIST
from microworld.world.kinds import KINDS, WHERE

SIZES = {"small": 26, "large": 40}  # pixels a side
COUNTS = (1, 2, 3)
BACKGROUNDS = tuple(WHERE)
RELATIONS = ("left of", "right of", "above", "below")
PLACES = {"left of": "on the left", "right of": "on the right", "above": "at the top", "below": "at the bottom"}
SPLITS = ("train", "validation", "test", "unseen_pairs", "unseen_artist")
CANVAS = 144  # pixels a side
_GAP = 4  # pixels at least between two groups, and between a group and the edge
# Centers of a group's members, in sizes from the group's center. `turned` exchanges x and y of two, and turns three
# upside down.
_LAYOUT = {1: ((0, 0),), 2: ((-0.54, 0), (0.54, 0)), 3: ((0, -0.52), (-0.54, 0.52), (0.54, 0.52))}


@dataclass(frozen=True)
class Group:
    """`count` drawings of one kind by one artist, in one size; (x, y) is the center of the group."""

    kind: str
    artist: str
    size: str
    count: int
    turned: bool
    x: float
    y: float

    def members(self) -> list[tuple[float, float]]:
        """The centers of the drawings."""
        side = SIZES[self.size]
        offsets = [(dx, -dy) if self.count == 3 else (dy, dx) for dx, dy in _LAYOUT[self.count]]
        offsets = offsets if self.turned else _LAYOUT[self.count]
        return [(self.x + side * dx, self.y + side * dy) for dx, dy in offsets]

    @cached_property  # sampling asks for it again and again
    def half_extent(self) -> tuple[float, float]:
        """Half the width and half the height of the group."""
        members, half = self.members(), SIZES[self.size] / 2
        return max([abs(x - self.x) for x, _ in members]) + half, max([abs(y - self.y) for _, y in members]) + half


@dataclass(frozen=True)
class Scene:
    """One to three groups of different kinds that do not overlap, and a background."""

    groups: tuple[Group, ...]
    background: str

    def place(self, group: Group) -> str | None:
        """'on the left' if the group is left of every other group, and so on; None without such a place."""
        relations = {relation(group, other) for other in self.groups if other is not group}
        return PLACES[relations.pop()] if len(relations) == 1 else None

    @property
    def has_unseen_pair(self) -> bool:
        kinds = sorted(group.kind for group in self.groups)
        pairs = [*itertools.combinations(kinds, 2), *((kind, self.background) for kind in kinds)]
        return any(is_unseen_pair(*pair) for pair in pairs)

    def key(self) -> str:
        """All that a full caption tells of the scene, in one order."""
        groups = sorted(self.groups, key=lambda group: group.kind)
        parts = [f"{g.count} {g.size} {g.kind}" for g in groups]
        parts += [relation(a, b) for a, b in itertools.combinations(groups, 2)]
        return ", ".join([*parts, self.background])


def is_unseen_pair(first: str, second: str) -> bool:
    """Whether no training image holds the two kinds (in alphabetical order), or the kind and the background."""
    return _hash(f"{first} + {second}") % 12 == 0


def relation(a: Group, b: Group) -> str | None:
    """Where `a` is, seen from `b`; None where two words would be right."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= 1.5 * abs(dy) and abs(dx) >= a.half_extent[0] + b.half_extent[0] + _GAP:
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= 1.5 * abs(dx) and abs(dy) >= a.half_extent[1] + b.half_extent[1] + _GAP:
        return "above" if dy < 0 else "below"
    return None


def sample_scene(
    rng: random.Random,
    numbers: Sequence[int] = (1, 1, 1, 2, 2, 2, 2, 3, 3, 3),
    counts: Sequence[int] = COUNTS,
    artists: Sequence[str] = ARTISTS,
    canvas: int = CANVAS,
) -> Scene:
    """Draw any scene, whatever its split. Every two groups have a clear relation.

    Args:
        numbers: the number of groups is one of these, each equally likely.
        counts: the numbers of drawings in a group.
        artists: of whom each group is drawn.
        canvas: side of the picture, in pixels.
    """
    kinds, background = rng.sample(KINDS, rng.choice(numbers)), rng.choice(BACKGROUNDS)
    while True:
        groups = [
            Group(kind, rng.choice(artists), rng.choice(list(SIZES)), rng.choice(counts), rng.random() < 0.5, 0, 0)
            for kind in kinds
        ]
        if placed := _place(groups, canvas, rng):
            return Scene(placed, background)


def _place(groups: list[Group], canvas: int, rng: random.Random, attempts: int = 20) -> tuple[Group, ...] | None:
    """The groups at random places, or None where no free places were found."""
    placed: list[Group] = []
    for group in groups:
        room_x, room_y = (half + _GAP for half in group.half_extent)
        if 2 * max(room_x, room_y) > canvas:
            return None
        looks = (group.kind, group.artist, group.size, group.count, group.turned)
        for _ in range(attempts):
            x, y = rng.uniform(room_x, canvas - room_x), rng.uniform(room_y, canvas - room_y)
            moved = Group(*looks, round(x, 1), round(y, 1))
            if all(relation(moved, other) for other in placed):
                placed.append(moved)
                break
        else:
            return None
    return tuple(placed)


def split_of(scene: Scene) -> str:
    """The split of a scene by the artists of training: a hash of its key decides, so that no split leaks."""
    if scene.has_unseen_pair:
        return "unseen_pairs"
    return {8: "validation", 9: "test"}.get(_hash(scene.key()) % 10, "train")


def scenes(split: str, seed: int = 0, **options) -> Iterator[Scene]:
    """An endless stream of scenes of one split; `options` are those of `sample_scene`.

    The scenes of "unseen_artist" are scenes of the test split, drawn by the held-out artist.

    Raises:
        ValueError: if `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if split == "unseen_artist":
        options["artists"], split, seed = (HELD_OUT_ARTIST,), "test", f"{seed} {HELD_OUT_ARTIST}"
    rng = random.Random(f"{split}-{seed}")
    while True:
        scene = sample_scene(rng, **options)
        if split_of(scene) == split:
            yield scene


def check_size(size: int) -> None:
    """Raise a ValueError if `size`, a number of scenes, is not a positive number."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a whole number, 1 or more.")


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
