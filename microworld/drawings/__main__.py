"""`python -m microworld.drawings`: make the drawings again from the Iconify packages on the npm registry.

Needs npm, and resvg from `pip install resvg-py`. icons.yaml has the packages' versions and their names of the kinds.
"""

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import resvg_py
import yaml
from PIL import Image
from tqdm.auto import tqdm

from microworld.drawings import FOLDER, SIDE
from microworld.world.kinds import KINDS

_ICONS = yaml.safe_load((FOLDER / "icons.yaml").read_text(encoding="utf-8"))
PACKAGES = _ICONS["versions"]
COLORS = 64  # in each drawing's palette


def main() -> None:
    for artist, version in tqdm(PACKAGES.items(), desc="artists"):
        icons = download(f"@iconify-json/{artist}@{version}")
        folder = FOLDER / artist
        folder.mkdir(exist_ok=True)
        names = _ICONS["names"]["any"] | _ICONS["names"].get(artist, {})
        for kind in KINDS:
            render(svg(icons, names.get(kind, kind))).save(folder / f"{kind}.png", optimize=True)


def download(package: str) -> dict:
    """The icons.json of an npm package."""
    command = ["npm", "pack", "--silent", package]
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
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
