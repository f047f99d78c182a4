"""The microworld as `datasets`: `microworld.dataset:load` gives images with captions."""

import random
from itertools import islice

from datasets import Dataset

from microworld.world.language import caption
from microworld.world.rendering import render
from microworld.world.scenes import check_size, scenes


def load(split: str = "train", size: int = 8000, captions_per_image: int = 5, seed: int = 0) -> Dataset:
    """Images and their captions.

    Args:
        split: "train", "validation", "test", "unseen_pairs" (scenes with two kinds, or a kind and a background, that
            no other split shows together) or "unseen_artist" (scenes of the test split by the held-out artist).
        size: number of images.
        captions_per_image: captions of each image, in different words and of different detail.
        seed: of scenes, drawing and wording.

    Returns:
        A dataset with the columns `image` (144 × 144 pixels, RGB) and `captions` (list of str).

    Raises:
        ValueError: there is no such split, or `size` is not a positive number.
    """
    check_size(size)
    rng = random.Random(f"{split}-{seed}-dataset")
    rows = [
        {"image": render(scene, rng), "captions": [caption(scene, rng) for _ in range(captions_per_image)]}
        for scene in islice(scenes(split, seed), size)
    ]
    return Dataset.from_list(rows)
