"""`microworld.dataset`: images with captions."""

import numpy as np
import pytest

from microworld.dataset import load
from microworld.world.caption_reader import caption_is_true
from microworld.world.scenes import CANVAS, SPLITS, scenes


@pytest.fixture(scope="module")
def data():
    return load("validation", size=20, captions_per_image=3)


def test_images_and_their_captions(data):
    assert data.column_names == ["image", "captions"] and len(data) == 20
    for row, scene in zip(data, scenes("validation"), strict=False):
        assert row["image"].size == (CANVAS, CANVAS) and row["image"].mode == "RGB"
        assert len(row["captions"]) == 3 and all(caption_is_true(text, scene) for text in row["captions"])
    assert sum(len(set(texts)) > 1 for texts in data["captions"]) > 15


def test_an_image_of_the_sea_is_blue_and_one_of_the_meadow_green(data):
    """The image belongs to the scene: its most frequent channel is the background's."""
    strongest = {"meadow": {1}, "sea": {2}, "brick wall": {0}, "night sky": {2}, "beach": {0}}
    seen = set()
    for row, scene in zip(load("train", 60, 1), scenes("train"), strict=False):
        if scene.background in strongest:
            channels = np.median(np.asarray(row["image"]).reshape(-1, 3), axis=0)
            assert int(channels.argmax()) in strongest[scene.background], scene.background
            seen.add(scene.background)
    assert seen == set(strongest)


def test_splits_and_seeds_differ(data):
    captions = {split: load(split, size=5, captions_per_image=1)["captions"][:] for split in SPLITS}
    assert len({str(texts) for texts in captions.values()}) == 5
    again = load("validation", size=20, captions_per_image=3)
    assert again["captions"][:] == data["captions"][:] and again[7]["image"].tobytes() == data[7]["image"].tobytes()
    assert load("validation", size=20, captions_per_image=3, seed=1)["captions"][:] != data["captions"][:]
    with pytest.raises(ValueError, match="split='dev'"):
        load("dev", size=1)
