"""Pixels: every group stands in its own cell, in its colour, on its background."""

import random

import numpy as np
import pytest

from microworld.world.rendering import _RGB, CELL, IMAGE_SIZE, render
from microworld.world.scenes import BACKGROUNDS, COLORS, COUNTS, GRID, SHAPES, SIZES, Group, Scene, sample_scene


def pixels(scene: Scene, seed: int = 0) -> np.ndarray:
    """(120, 120, 3)"""
    return np.asarray(render(scene, random.Random(seed))).astype(int)


def cell(image: np.ndarray, group: Group) -> np.ndarray:
    row, column = group.cell
    return image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def lit(square: np.ndarray) -> np.ndarray:
    """Where a cell's card is not black."""
    return square[2:-2, 2:-2].max(axis=-1) > 60


def painted_area(shape: str, size: str, count: int) -> int:
    return lit(cell(pixels(one(shape, "yellow", size, count)), one().groups[0])).sum()


def one(shape="circle", color="red", size="large", count=1, place=(1, 1), background="white") -> Scene:
    return Scene((Group(shape, color, size, count, place),), background)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_group_stays_inside_its_cell(shape, size, count):
    for seed in range(5):
        image = pixels(one(shape, "red", size, count), seed)
        painted = (image != image[0, 0]).any(axis=-1)
        rows, columns = np.nonzero(painted)
        assert {rows.min() // CELL, rows.max() // CELL, columns.min() // CELL, columns.max() // CELL} == {1}
        assert lit(image[CELL : 2 * CELL, CELL : 2 * CELL]).any()


def test_groups_are_where_the_scene_says():
    rng = random.Random(0)
    for seed in range(50):
        scene = sample_scene(rng)
        image = pixels(scene, seed)
        assert image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        cells = image.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2)  # (row, column, 40, 40, 3)
        painted = (cells != cells[:, :, :1, :1]).any(axis=(2, 3, 4))
        assert set(zip(*np.nonzero(painted), strict=True)) == {group.cell for group in scene.groups}


@pytest.mark.parametrize("color", COLORS)
def test_colours_are_the_named_ones_and_no_other(color):
    for seed in range(20):
        square = cell(pixels(one("square", color), seed), one().groups[0])
        middle = square[CELL // 2, CELL // 2]
        distances = {name: np.abs(middle - _RGB[name]).max() for name in COLORS}
        assert distances[color] <= 10 and min(d for name, d in distances.items() if name != color) > 20


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_backgrounds(background):
    corner = pixels(one(background=background))[0, 0]
    assert np.abs(corner - _RGB[background]).max() <= 10


@pytest.mark.parametrize("shape", SHAPES)
def test_larger_and_more_is_more_paint(shape):
    area = {(size, count): painted_area(shape, size, count) for size in SIZES for count in COUNTS}
    for count in COUNTS:
        assert area["large", count] > 1.7 * area["small", count]
    assert area["small", 2] == pytest.approx(2 * area["small", 1], rel=0.05)
    assert area["small", 3] == pytest.approx(3 * area["small", 1], rel=0.05)


def test_no_two_shapes_look_alike():
    masks = {shape: lit(cell(pixels(one(shape)), one().groups[0])) for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
            assert overlap == 1 if a == b else overlap < 0.9, (a, b, overlap)


def test_the_moon_is_open_to_the_right_and_the_arrow_points_there():
    moon, arrow = (lit(cell(pixels(one(shape)), one().groups[0])) for shape in ("moon", "arrow"))
    columns = np.nonzero(moon.any(axis=0))[0]
    middle = moon[moon.shape[0] // 2, columns[0] : columns[-1] + 1]
    assert middle[:5].all() and not middle[-4:].any()
    height = arrow.sum(axis=0)[arrow.any(axis=0)]
    assert height[-2] < height[len(height) // 2 + 1] > height[0]


def test_the_same_seed_gives_the_same_image():
    scene = one()
    assert (pixels(scene, 3) == pixels(scene, 3)).all()
    assert len({pixels(scene, seed).tobytes() for seed in range(10)}) == 10
