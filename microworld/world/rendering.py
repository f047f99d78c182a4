"""Draws a scene: 120 × 120 pixels, a 3 × 3 grid of cells, each group on a black card inside one cell."""

import math
import random
from functools import cache

from PIL import Image, ImageDraw

from microworld.world.scenes import GRID, Group, Scene

CELL = 40  # pixels
IMAGE_SIZE = GRID * CELL
_CARD = 36  # pixels
_DIAMETER = {"small": 12, "large": 19}  # pixels
_OVERSAMPLING = 8
_RGB = {
    "red": (230, 40, 40),
    "green": (40, 185, 60),
    "blue": (55, 85, 245),
    "yellow": (245, 230, 50),
    "purple": (150, 50, 205),
    "orange": (250, 140, 25),
    "pink": (255, 165, 205),
    "cyan": (50, 215, 230),
    "white": (235, 235, 235),
    "black": (40, 40, 40),
    "gray": (130, 130, 130),
    "brown": (125, 85, 50),
}
# Centres of the members of a group, in pixels from the centre of the cell.
_LAYOUT = {1: ((0, 0),), 2: ((-9, -5), (9, 5)), 3: ((0, -10), (-10, 9), (10, 9))}


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw `scene` as an RGB image; `rng` varies every colour a little."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), _shade(scene.background, rng))
    for group in scene.groups:
        _draw_group(image, group, rng)
    return image


def _draw_group(image: Image.Image, group: Group, rng: random.Random) -> None:
    row, column = group.cell
    edge = (CELL - _CARD) // 2
    image.paste(
        (0, 0, 0), (column * CELL + edge, row * CELL + edge, column * CELL + edge + _CARD, row * CELL + edge + _CARD)
    )
    mask, color = _mask(group.shape, _DIAMETER[group.size]), _shade(group.color, rng)
    for dx, dy in _LAYOUT[group.count]:
        x = column * CELL + CELL // 2 + dx - mask.width // 2
        y = row * CELL + CELL // 2 + dy - mask.height // 2
        image.paste(color, (x, y), mask)


def _shade(name: str, rng: random.Random) -> tuple[int, int, int]:
    return tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in _RGB[name])


@cache
def _mask(shape: str, diameter: int) -> Image.Image:
    """The antialiased stamp of a shape: 8-bit coverage, `diameter` pixels a side."""
    side = diameter * _OVERSAMPLING
    mask = Image.new("L", (side, side), 0)
    _DRAW[shape](ImageDraw.Draw(mask), side)
    return mask.resize((diameter, diameter), Image.Resampling.BOX)


def _polygon(*points: tuple[float, float]):
    """A drawing function for a polygon given on the unit square."""
    return lambda draw, s: draw.polygon([(x * s, y * s) for x, y in points], fill=255)


def _circle(draw: ImageDraw.ImageDraw, s: int) -> None:
    draw.ellipse((0, 0, s - 1, s - 1), fill=255)


def _ring(draw: ImageDraw.ImageDraw, s: int) -> None:
    draw.ellipse((0, 0, s - 1, s - 1), fill=255)
    draw.ellipse((0.27 * s, 0.27 * s, 0.73 * s, 0.73 * s), fill=0)


def _moon(draw: ImageDraw.ImageDraw, s: int) -> None:
    draw.ellipse((0, 0, s - 1, s - 1), fill=255)
    draw.ellipse((0.4 * s, 0.05 * s, 1.3 * s, 0.95 * s), fill=0)


def _heart(draw: ImageDraw.ImageDraw, s: int) -> None:
    draw.ellipse((0, 0.05 * s, 0.53 * s, 0.55 * s), fill=255)
    draw.ellipse((0.47 * s, 0.05 * s, s - 1, 0.55 * s), fill=255)
    draw.polygon([(0.03 * s, 0.42 * s), (0.97 * s, 0.42 * s), (0.5 * s, s - 1)], fill=255)


def _star_points() -> list[tuple[float, float]]:
    radii = (0.53, 0.21)
    angles = [math.pi * (k / 5 - 0.5) for k in range(10)]
    return [(0.5 + radii[k % 2] * math.cos(a), 0.53 + radii[k % 2] * math.sin(a)) for k, a in enumerate(angles)]


_DRAW = {
    "circle": _circle,
    "ring": _ring,
    "moon": _moon,
    "heart": _heart,
    "square": _polygon((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)),
    "triangle": _polygon((0.5, 0), (1, 0.95), (0, 0.95)),
    "diamond": _polygon((0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)),
    "star": _polygon(*_star_points()),
    "cross": _polygon(
        (0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66),
        (0.66, 1), (0.34, 1), (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34),
    ),
    "arrow": _polygon((0, 0.36), (0.5, 0.36), (0.5, 0.08), (1, 0.5), (0.5, 0.92), (0.5, 0.64), (0, 0.64)),
}  # fmt: skip
