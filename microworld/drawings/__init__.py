"""Drawings of every kind by six artists: one PNG each, 96 × 96 pixels, in `microworld/drawings/ARTIST/KIND.png`."""

from functools import cache
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
HELD_OUT_ARTIST = "noto"  # in no image that anything is trained on
ARTISTS = ("noto-v1", "twemoji", "fluent-emoji-flat", "fxemoji", "emojione")
SIDE = 96  # pixels


@cache
def drawing(kind: str, artist: str) -> Image.Image:
    """The artist's drawing of a kind, RGBA. It is shared: copy it before you change it."""
    with Image.open(FOLDER / artist / f"{kind}.png") as image:
        return image.convert("RGBA")
