"""`microworld.dataset`: images with captions, and plain text."""

import pytest

from microworld.dataset import load
from microworld.world.caption_reader import caption_is_true, read_caption
from microworld.world.rendering import IMAGE_SIZE
from microworld.world.scenes import SPLITS, scenes


@pytest.fixture(scope="module")
def data():
    return load("validation", size=30, captions_per_image=3)


def test_images_and_their_captions(data):
    assert data.column_names == ["image", "captions"] and len(data) == 30
    for row, scene in zip(data, scenes("validation"), strict=False):
        assert row["image"].size == (IMAGE_SIZE, IMAGE_SIZE) and row["image"].mode == "RGB"
        assert len(row["captions"]) == 3 and all(caption_is_true(text, scene) for text in row["captions"])


def test_images_show_their_scenes(data):
    """Where a scene has no group, the picture is its background and nothing else."""
    for row, scene in zip(data, scenes("validation"), strict=False):
        image, ground = row["image"], row["image"].getpixel((0, 0))
        for line in range(3):
            for column in range(3):
                cell = image.crop((40 * column, 40 * line, 40 * column + 40, 40 * line + 40))
                is_plain = cell.getcolors() == [(1600, ground)]
                assert is_plain != ((line, column) in {group.cell for group in scene.groups})


def test_statements_are_added():
    plain, more = load("train", size=5, captions_per_image=1), load("train", 5, 1, statements_per_image=2)
    for few, many in zip(plain["captions"], more["captions"], strict=True):
        assert len(few) == 1 and len(many) == 3
    assert any(text.startswith(("the ", "there ")) for texts in more["captions"] for text in texts[1:])


def test_splits_and_seeds_differ(data):
    captions = {split: load(split, size=5, captions_per_image=1)["captions"][:] for split in SPLITS}
    assert len({str(texts) for texts in captions.values()}) == 4
    again = load("validation", size=30, captions_per_image=3)
    assert again["captions"][:] == data["captions"][:] and again[7]["image"].tobytes() == data[7]["image"].tobytes()
    assert load("validation", size=30, captions_per_image=3, seed=1)["captions"][:] != data["captions"][:]
    with pytest.raises(ValueError, match="split='dev'"):
        load("dev", size=1)


def test_captions_vary(data):
    assert sum(len(set(texts)) > 1 for texts in data["captions"]) > 20
    assert all(read_caption(text).mentions for texts in data["captions"] for text in texts)
