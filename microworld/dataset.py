"""The microworld as `datasets`: `microworld.dataset:load` gives images with captions."""

import random
from itertools import islice

from datasets import Dataset, Features, Image, List, Value

from microworld.world.language import caption, statements
from microworld.world.rendering import render
from microworld.world.scenes import scenes


def load(
    split: str = "train", size: int = 8000, captions_per_image: int = 4, statements_per_image: int = 0, seed: int = 0
) -> Dataset:
    """Images and their captions.

    Args:
        split: "train", "validation", "test", or "unseen" (scenes with a colour-shape pair that no other split shows).
        size: number of images.
        captions_per_image: paraphrases of an image's caption.
        statements_per_image: short true sentences ("the circle is red") added to them.
        seed: of scenes, drawing and wording.

    Returns:
        A dataset with the columns `image` and `captions` (list of str).

    Raises:
        ValueError: if there is no such split.
    """
    rng = random.Random(f"{split}-{seed}-dataset")
    columns: dict[str, list] = {"image": [], "captions": []}
    for scene in islice(scenes(split, seed), size):
        columns["image"].append(render(scene, rng))
        said = [caption(scene, rng) for _ in range(captions_per_image)]
        if statements_per_image:
            said += rng.sample(statements(scene), min(statements_per_image, len(statements(scene))))
        columns["captions"].append(said)
    return Dataset.from_dict(columns, Features({"image": Image(), "captions": List(Value("string"))}))
