"""The drawings: every kind by every artist, and how they are made."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microworld.drawings import ARTISTS, FOLDER, HELD_OUT_ARTIST, SIDE, drawing
from microworld.world.kinds import KINDS

ALL_ARTISTS = (*ARTISTS, HELD_OUT_ARTIST)
RECTANGLE = '<path fill="#f00" d="M0 0h8v32H0z"/>'  # the left quarter of a 32 × 32 picture


@pytest.fixture(scope="module")
def maker():
    """The module that makes the drawings."""
    pytest.importorskip("resvg_py")
    import microworld.drawings.__main__ as module

    return module


@pytest.mark.parametrize("artist", ALL_ARTISTS)
def test_an_artist_drew_every_kind(artist):
    assert {file.stem for file in (FOLDER / artist).iterdir()} == set(KINDS)
    for kind in KINDS:
        with Image.open(FOLDER / artist / f"{kind}.png") as image:
            assert image.format == "PNG" and image.size == (SIDE, SIDE) == (96, 96)
        rgba = np.asarray(drawing(kind, artist))
        assert rgba.shape == (96, 96, 4) and len(np.unique(rgba.reshape(-1, 4), axis=0)) <= 64
        opaque = (rgba[..., 3] > 127).mean()
        assert 0.1 < opaque < 1 and (rgba[..., 3] == 0).any(), kind  # something is drawn, on a transparent ground


def test_no_two_drawings_are_equal():
    pixels = {drawing(kind, artist).tobytes() for kind in KINDS for artist in ALL_ARTISTS}
    assert len(pixels) == 360


def test_the_drawings_are_small():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.png")) < 1_500_000


def test_the_attribution_names_every_set_its_version_and_a_license_that_is_here(maker):
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| .*https://github\.com/.* \| `(.+?)` (.+?) \| \[.+?\]\((.+?)\) \|$", text, re.M)
    assert {name: version for name, _, version, _ in rows} == maker.PACKAGES
    assert all(package == f"@iconify-json/{name}" for name, package, *_ in rows)
    licenses = {name: Path(path).stem for name, *_, path in rows}
    assert licenses == {
        "noto": "Apache-2.0",
        "noto-v1": "Apache-2.0",
        "twemoji": "CC-BY-4.0",
        "fluent-emoji-flat": "MIT",
        "fxemoji": "CC-BY-4.0",
        "emojione": "CC-BY-4.0",
    }
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (FOLDER / "licenses").iterdir()}
    assert set(texts) == set(licenses.values())
    for name, license in licenses.items():
        assert license != "CC-BY-4.0" or f"microworld/drawings/{name}\n" in texts[license]


def test_every_kind_is_made_from_one_icon_of_every_set(maker, tmp_path, monkeypatch):
    """With packages in which every icon exists; which names are asked for is checked for a few."""
    asked = {}

    class Icons(dict):
        def __missing__(self, name):
            self[name] = {"body": RECTANGLE}
            return self[name]

    def download(package):
        asked[package] = Icons()
        return {"icons": asked[package], "width": 32, "height": 32}

    monkeypatch.setattr(maker, "download", download)
    monkeypatch.setattr(maker, "FOLDER", tmp_path)
    maker.main()
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png")} == {
        f"{artist}/{kind}.png" for artist in ALL_ARTISTS for kind in KINDS
    }
    names = {package.removeprefix("@iconify-json/").split("@")[0]: set(icons) for package, icons in asked.items()}
    assert all(len(found) == 60 and all(re.fullmatch("[a-z-]+", name) for name in found) for found in names.values())
    assert {"penguin", "automobile", "cow-face", "palm-tree", "eggplant", "pizza"} <= names["noto"] == names["twemoji"]
    assert {"penguin", "automobile", "cowface", "palmtree", "aubergine", "sliceofpizza"} <= names["fxemoji"]


def test_an_alias_leads_to_its_icon(maker):
    icons = {
        "icons": {"automobile": {"body": RECTANGLE}, "wide": {"body": "", "width": 48, "left": -8}},
        "aliases": {"red-car": {"parent": "car"}, "car": {"parent": "automobile"}},
        "width": 32,
        "height": 32,
    }
    text = maker.svg(icons, "red-car")
    assert text == maker.svg(icons, "automobile")
    assert 'viewBox="0 0 32 32" width="96" height="96"' in text and RECTANGLE in text
    assert 'viewBox="-8 0 48 32"' in maker.svg(icons, "wide")
    with pytest.raises(KeyError, match="bus"):
        maker.svg(icons, "bus")


def test_an_icon_becomes_a_drawing(maker):
    image = maker.render(maker.svg({"icons": {"bar": {"body": RECTANGLE}}, "height": 32, "width": 32}, "bar"))
    rgba = np.asarray(image.convert("RGBA"))
    assert rgba.shape == (96, 96, 4)
    assert (rgba[:, :24] == (255, 0, 0, 255)).all() and (rgba[:, 24:, 3] == 0).all()
