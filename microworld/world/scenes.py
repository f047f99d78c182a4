"""Scenes: one or two groups of coloured shapes on a plain background, sampled from a seed.

A scene is pure data. `render.py` draws it, `language.py` speaks of it.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "moon", "arrow")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SIZES = ("small", "large")
COUNTS = (1, 2, 3)
BACKGROUNDS = ("white", "black", "gray", "brown")
GRID = 3  # cells a side; each group stands in a cell of its own
# One colour of every shape is in no image but those of the split "unseen".
UNSEEN_PAIRS = frozenset((shape, COLORS[(3 * i + 1) % len(COLORS)]) for i, shape in enumerate(SHAPES))
SPLITS = ("train", "validation", "test", "unseen")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Group:
    """`count` equal shapes in the grid cell (row, column)."""

    shape: str
    color: str
    size: str
    count: int
    cell: tuple[int, int]


@dataclass(frozen=True)
class Scene:
    """One or two groups, of different shapes and different colours, and a background."""

    groups: tuple[Group, ...]
    background: str

    def relation(self, a: Group, b: Group) -> str:
        """Where `a` is, seen from `b`: the two share a row or a column, so that one word is right."""
        (row_a, column_a), (row_b, column_b) = a.cell, b.cell
        if row_a == row_b:
            return "left of" if column_a < column_b else "right of"
        return "above" if row_a < row_b else "below"

    @property
    def has_unseen_pair(self) -> bool:
        return any((g.shape, g.color) in UNSEEN_PAIRS for g in self.groups)

    def key(self) -> str:
        """All that a caption can tell of the scene, in one order: two scenes of equal key are the same to a reader."""
        parts = sorted(f"{g.count} {g.size} {g.color} {g.shape}" for g in self.groups)
        if len(self.groups) == 2:
            a, b = sorted(self.groups, key=lambda g: g.shape)
            parts.append(self.relation(a, b))
        return ", ".join([*parts, self.background])


def sample_scene(rng: random.Random) -> Scene:
    """Draw any scene, whatever its split: two groups in 70% of the cases."""
    two = rng.random() < 0.7
    shapes, colors = rng.sample(SHAPES, 2), rng.sample(COLORS, 2)
    groups = tuple(
        Group(shape, color, rng.choice(SIZES), rng.choice(COUNTS), cell)
        for shape, color, cell in zip(shapes, colors, sample_cells(rng), strict=True)
    )
    return Scene(groups if two else groups[:1], rng.choice(BACKGROUNDS))


def sample_cells(rng: random.Random) -> list[tuple[int, int]]:
    """Two cells on either side of the middle one, in its row or in its column."""
    i, j = rng.sample((0, GRID - 1), 2)
    middle = GRID // 2
    return [(middle, i), (middle, j)] if rng.random() < 0.5 else [(i, middle), (j, middle)]


def split_of(scene: Scene) -> str:
    """The one split a scene belongs to: a hash of its key decides, so that no split can leak into another."""
    if scene.has_unseen_pair:
        return "unseen"
    bucket = int(hashlib.sha256(scene.key().encode()).hexdigest(), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


def scenes(split: str, seed: int = 0) -> Iterator[Scene]:
    """An endless stream of scenes of one split.

    Raises:
        ValueError: if `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    rng = random.Random(f"{split}-{seed}")
    while True:
        scene = sample_scene(rng)
        if split_of(scene) == split:
            yield scene
