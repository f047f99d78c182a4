"""A few captioned images, for the tests of the trainer; `load` is a dataset by import path."""

import numpy as np
from datasets import Dataset, Features, Image, List, Value

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
PLACES = ("on the grass", "under the table", "left of it", "about nothing at all, very long")


def load(split: str = "train", rows: int = 16) -> Dataset:
    """Squares of one color with two captions each; another split has other images."""
    rng = np.random.default_rng([len(split), rows])
    names = [list(COLORS)[index % 4] for index in range(rows)]
    images = [rng.integers(0, 80, (32, 32, 3), dtype=np.uint8) // 2 + np.uint8(COLORS[name]) // 2 for name in names]
    captions = [
        [f"a photo of a {name} square", f"the {name} square is {PLACES[index % 3]}"]
        for index, name in enumerate(names)
    ]
    features = Features({"image": Image(), "caption": List(Value("string")), "extra": Value("int64")})
    return Dataset.from_dict({"image": images, "caption": captions, "extra": range(rows)}, features=features)
