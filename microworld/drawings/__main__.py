"""`python -m microworld.drawings`: make the drawings again from the Iconify packages on the npm registry.

Needs npm, and resvg from `pip install resvg-py`. `PACKAGES` has the versions that the drawings were made from.
"""

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import resvg_py
from PIL import Image
from tqdm.auto import tqdm

from microworld.drawings import FOLDER, SIDE
from microworld.world.kinds import KINDS

PACKAGES = {
    "noto": "1.2.1",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji-flat": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
}
COLORS = 64  # in each drawing's palette
# What the packages call a kind, where it is not the kind itself.
_ICONS = {
    "whale": "spouting-whale",
    "pig": "pig-face",
    "cow": "cow-face",
    "rabbit": "rabbit-face",
    "bee": "honeybee",
    "camel": "two-hump-camel",
    "monkey": "monkey-face",
    "apple": "red-apple",
    "car": "automobile",
    "piano": "musical-keyboard",
    "palm tree": "palm-tree",
    "fir tree": "evergreen-tree",
    "boot": "womans-boot",
    "hat": "top-hat",
}
_FX_ICONS = {
    "whale": "spurtingwhale",
    "pig": "pig",
    "cow": "cowface",
    "panda": "pandaface",
    "rabbit": "bunny",
    "camel": "bactriancamel",
    "monkey": "monkeyface",
    "apple": "redapple",
    "eggplant": "aubergine",
    "pizza": "sliceofpizza",
    "piano": "musicalkeyboard",
    "palm tree": "palmtree",
    "fir tree": "evergreen",
    "house": "housebuilding",
    "castle": "europeancastle",
    "boot": "boot",
    "hat": "tophat",
}


def main() -> None:
    for artist, version in tqdm(PACKAGES.items(), desc="artists"):
        icons = download(f"@iconify-json/{artist}@{version}")
        folder = FOLDER / artist
        folder.mkdir(exist_ok=True)
        for kind in KINDS:
            name = _ICONS.get(kind, kind)
            name = _FX_ICONS.get(kind, name) if artist == "fxemoji" else name
            render(svg(icons, name)).save(folder / f"{kind}.png", optimize=True)


def download(package: str) -> dict:
    """The icons.json of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
        )
        with tarfile.open(Path(folder, packed.stdout.strip())) as archive:
            return json.load(archive.extractfile("package/icons.json"))


def svg(icons: dict, name: str) -> str:
    """The SVG of an icon, or of the icon that it is an alias of."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
    )


def render(text: str) -> Image.Image:
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIDE, height=SIDE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return image.quantize(COLORS, method=Image.Quantize.FASTOCTREE)


if __name__ == "__main__":
    main()
