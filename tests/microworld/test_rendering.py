"""Pixels: the drawings are where the scene says, at any scale, and nowhere else."""

import random
from itertools import combinations, islice

import numpy as np
import pytest
from PIL import Image

from microworld.drawings import ARTISTS, HELD_OUT_ARTIST, drawing
from microworld.world.rendering import _VARIANTS, _texture, render
from microworld.world.scenes import BACKGROUNDS, CANVAS, SIZES, SPLITS, Group, Scene, scenes

MARGIN = 2  # pixels: a drawing may be 4% larger than its size


def pixels(scene: Scene, seed: int = 0, **options) -> np.ndarray:
    """(height, width, 3)"""
    return np.asarray(render(scene, random.Random(seed), **options)).astype(int)


def changed(scene: Scene, seed: int) -> np.ndarray:
    """(height, width): where the picture differs from its background, which the same seed draws."""
    return (pixels(scene, seed) != pixels(Scene((), scene.background), seed)).any(axis=-1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_drawing_is_where_the_scene_says_and_nothing_else_is(split):
    for seed, scene in enumerate(islice(scenes(split), 20)):
        painted = changed(scene, seed)
        assert painted.shape == (CANVAS, CANVAS) == (144, 144)
        for group in scene.groups:
            half = SIZES[group.size] / 2
            for x, y in group.members():
                x0, x1, y0, y1 = (round(v) for v in (x - half, x + half, y - half, y + half))
                share = painted[y0:y1, x0:x1].mean()
                assert share > 0.1, group
                painted[y0 - MARGIN : y1 + MARGIN, x0 - MARGIN : x1 + MARGIN] = False
        assert not painted.any()


@pytest.mark.parametrize("artist", (*ARTISTS, HELD_OUT_ARTIST))
def test_a_picture_shows_the_drawing_of_its_artist(artist):
    """Over twelve pictures, the plain drawing that comes nearest to them is the artist's."""
    for kind in ("penguin", "car", "pizza"):
        scene = Scene((Group(kind, artist, "large", 1, False, 72, 72),), "paper")
        distances = dict.fromkeys((*ARTISTS, HELD_OUT_ARTIST), 0.0)
        for seed in range(12):
            shown = pixels(scene, seed)
            for other in distances:
                plain = drawing(kind, other).resize((40, 40), Image.Resampling.BOX)
                found = []
                for image in (plain, plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                    expected = render(Scene((), "paper"), random.Random(seed))
                    expected.paste(image, (52, 52), image)
                    found.append(np.abs(shown - np.asarray(expected)).mean())
                distances[other] += min(found)
        assert min(distances, key=distances.get) == artist


def test_larger_and_more_is_more_paint():
    area = {}
    for size in SIZES:
        for count in (1, 2, 3):
            scene = Scene((Group("apple", "twemoji", size, count, False, 72, 72),), "night sky")
            area[size, count] = sum(changed(scene, seed).sum() for seed in range(5))
    for count in (1, 2, 3):
        assert area["large", count] / area["small", count] == pytest.approx((40 / 26) ** 2, rel=0.2)
        assert area["small", count] == pytest.approx(count * area["small", 1], rel=0.15)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_composition_is_the_same_at_any_scale(background):
    groups = (Group("frog", "fxemoji", "large", 3, True, 50, 60), Group("key", "emojione", "small", 1, False, 120, 60))
    scene = Scene(groups, background)
    large = render(scene, random.Random(3), scale=3)
    assert large.size == (432, 432) and large.mode == "RGB"
    small = np.asarray(large.resize((144, 144), Image.Resampling.BOX)).astype(int)
    difference = np.abs(small - pixels(scene, 3))
    other = np.abs(small - pixels(scene, 4))
    assert difference.mean() < 8 and difference.mean() < other.mean() / 2


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_background_has_twelve_variants_and_is_none_of_the_others(background):
    textures = [np.asarray(_texture(background, variant, CANVAS)).astype(int) for variant in range(_VARIANTS)]
    assert len(textures) == 12
    assert all(np.abs(a - b).mean() > 0.5 for a, b in combinations(textures, 2))
    colors = {name: np.asarray(_texture(name, 0, CANVAS)).mean(axis=(0, 1)) for name in BACKGROUNDS}
    for texture in textures[1:]:
        distances = {name: np.abs(texture.mean(axis=(0, 1)) - color).max() for name, color in colors.items()}
        assert min(distances, key=distances.get) == background


def test_the_seed_decides():
    scene = next(scenes("train"))
    assert (pixels(scene, 3) == pixels(scene, 3)).all()
    assert len({pixels(scene, seed).tobytes() for seed in range(10)}) == 10
    assert pixels(scene, 3, canvas=160).shape == (160, 160, 3)
