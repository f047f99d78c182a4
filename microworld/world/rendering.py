"""Draws a scene: the artists' drawings, slightly turned, mirrored and tinted, on a background with texture."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from microworld.drawings import drawing
from microworld.world.scenes import BACKGROUNDS, CANVAS, SIZES, Group, Scene

_VARIANTS = 12  # of each background
_TILT = 12  # degrees, at most
_TINT = 0.1  # by which each color channel is at most brightened or darkened


def render(scene: Scene, rng: random.Random, canvas: int = CANVAS, scale: int = 1) -> Image.Image:
    """Draw `scene` as an RGB image, `canvas * scale` pixels a side. Equal `rng`s give equal pictures at any scale."""
    image = _background(scene.background, rng, canvas * scale)
    for group in scene.groups:
        for x, y in group.members():
            stamp = _vary(group, rng, scale)
            image.paste(stamp, (round(x * scale - stamp.width / 2), round(y * scale - stamp.height / 2)), stamp)
    return image


def _vary(group: Group, rng: random.Random, scale: int) -> Image.Image:
    """The group's drawing in its size, a little different each time."""
    side, angle, mirrored = SIZES[group.size] * rng.uniform(0.94, 1.04), rng.uniform(-_TILT, _TILT), rng.random() < 0.5
    tint = [rng.uniform(1 - _TINT, 1 + _TINT) for _ in range(3)]
    image = drawing(group.kind, group.artist)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = round(side * scale)
    image = image.resize((pixels, pixels), Image.Resampling.BOX).rotate(angle, Image.Resampling.BICUBIC)
    tinted = _scale_channels(image.convert("RGB"), tint)
    tinted.putalpha(image.getchannel("A"))
    return tinted


def _scale_channels(image: Image.Image, factors: Sequence[float]) -> Image.Image:
    red, green, blue = factors
    return image.convert("RGB", (red, 0, 0, 0, 0, green, 0, 0, 0, 0, blue, 0))


def _background(name: str, rng: random.Random, side: int) -> Image.Image:
    """One of the background's variants, mirrored in half of the cases, a little brighter or darker."""
    texture = _texture(name, rng.randrange(_VARIANTS), side)
    if rng.random() < 0.5:
        texture = texture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _scale_channels(texture, [rng.uniform(0.93, 1.07)] * 3)


@cache
def _texture(name: str, variant: int, side: int) -> Image.Image:
    rng = np.random.default_rng((BACKGROUNDS.index(name), variant))
    return Image.fromarray(_paint(name, rng, side).clip(0, 255).astype(np.uint8))


def _paint(name: str, rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3), about 0 to 255."""

    def noise(*cells: int) -> np.ndarray:
        """(side, side, 1), about -1 to 1: smooth noise of `cells` rows and columns."""
        coarse = Image.fromarray(rng.uniform(-1, 1, cells).astype(np.float32))
        return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))[..., None]

    y, x = np.mgrid[0:side, 0:side, 0:1][:2] / side  # of every pixel, (side, side, 1), from 0 to 1
    match name:
        case "meadow":
            return np.array([112, 170, 82]) + 14 * noise(6, 6) + 20 * noise(12, 72)
        case "beach":
            wave = 0.2 + 0.03 * noise(5, 5)
            sand = np.array([232, 208, 158]) + 6 * noise(8, 8) + 9 * noise(72, 72)
            water = np.array([92, 180, 205]) + 8 * noise(12, 12)
            return np.where(y < wave, water, np.where(y < wave + 0.03, 245.0, sand))
        case "sea":
            phase = rng.uniform(0, 6.28)
            waves = np.sin(40 * y + 2.5 * np.sin(9 * x + phase) + 2 * noise(6, 6))
            return np.array([58, 124, 188]) + 16 * waves + 8 * noise(8, 8)
        case "night sky":
            sky = np.array([26, 28, 66]) + np.array([22, 18, 40]) * y + 6 * noise(5, 5)
            stars = np.zeros((side, side, 1))
            for left, top, light in rng.uniform(0, 1, (70, 3)):
                column, row, width = int(left * side), int(top * side), max(1, round(side * (0.007 + 0.007 * light)))
                stars[row : row + width, column : column + width] = 90 + 120 * light
            return np.maximum(sky, stars)
        case "brick wall":
            rows, columns = 9, 4.5
            row = np.floor(y * rows)
            along = x * columns + 0.5 * (row % 2)
            tones = rng.uniform(-16, 16, (rows + 1, int(columns) + 3))[row.astype(int), np.floor(along).astype(int)]
            is_mortar = (y * rows % 1 < 0.12) | (along % 1 < 0.05)
            return np.where(is_mortar, 196.0, np.array([168, 88, 68]) + tones) + 7 * noise(48, 48)
        case "snow":
            return np.array([226, 234, 244]) + np.array([12, 9, 5]) * noise(5, 5) + 4 * noise(60, 60)
        case "paper":
            lines = (y * 11 + rng.uniform()) % 1 < 0.09
            return np.where(lines, np.array([164, 186, 222]), np.array([248, 244, 232])) + 2 * noise(40, 40)
        case "wooden floor":
            row = np.floor(y * 6).astype(int)
            grain = np.sin(60 * y + 6 * noise(4, 4) + 5 * row)
            gap = (y * 6 % 1 < 0.07) | ((x + rng.uniform(0, 1, 7)[row]) * 2 % 1 < 0.012)
            planks = np.array([187, 139, 89]) + 7 * grain + rng.uniform(-12, 12, 7)[row]
            return np.where(gap, np.array([92, 64, 46]), planks)
