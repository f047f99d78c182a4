"""`vlkd embed` and `vlkd search` on real files: rankings, what is printed where, and what an error leaves behind."""

import base64
import io
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from modeling_vlkd import VLKDModel
from trainer.cli import main
from trainer.inference import backends, search

TEXT = "two dogs on the grass"
EXACT = ("--dtype", "float32", "--device", "cpu")
NAMES = [f"{number:02}.png" for number in range(12)]


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The working directory: photos/ with 12 images of two colors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    colors = torch.randint(0, 256, (len(NAMES), 2, 3), generator=torch.Generator().manual_seed(3)).tolist()
    for name, (left, right) in zip(NAMES, colors, strict=True):
        image = Image.new("RGB", (400, 200), tuple(left))
        image.paste(tuple(right), (0, 0, 200, 200))
        image.save(tmp_path / "photos" / name)
    return tmp_path


@pytest.fixture
def index(photos, vlkd_dir, capsys) -> Path:
    assert main(["embed", "photos", "--model", vlkd_dir, "--output", "index", *EXACT]) == 0
    assert capsys.readouterr().out == "12 images in index\n"
    return photos / "index"


def run(capsys, *argv: str) -> tuple[int, list[str], list[str]]:
    code = main(list(argv))
    output = capsys.readouterr()
    return code, output.out.splitlines(), [line for line in output.err.splitlines() if line.startswith("vlkd")]


def found(capsys, *argv: str) -> list[tuple[str, float]]:
    """The names and scores that a search prints, with exit code 0."""
    code, out, errors = run(capsys, "search", *argv, "--json", *EXACT)
    assert (code, errors) == (0, [])
    rows = [json.loads(line) for line in out]
    return [(row["image"], row["score"]) for row in rows]


@pytest.fixture
def embeds(photos, vlkd_dir, processor) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of the images (12, d_j) and of the text (d_j,), by the dual encoder itself."""
    inputs = processor.tokenizer([TEXT], return_tensors="pt")
    pixels = processor.image_processor([Image.open(f"photos/{name}") for name in NAMES], return_tensors="pt")
    with torch.no_grad():
        output = VLKDModel.from_pretrained(vlkd_dir)(**inputs, **pixels)
    return output.image_embeds.numpy(), output.text_embeds[0].numpy()


def assert_ranking(results: list[tuple[str, float]], scores: np.ndarray, folder: Path) -> None:
    order = np.argsort(-scores)[: len(results)]
    assert [path for path, _ in results] == [str(folder / "photos" / NAMES[number]) for number in order]
    assert [score for _, score in results] == pytest.approx(scores[order].tolist(), abs=1e-5)


def test_a_text_ranks_as_the_matrix_product(index, photos, embeds, capsys):
    images, text = embeds
    assert len(set((images @ text).round(4))) == len(NAMES)
    assert_ranking(found(capsys, TEXT, "--index", "index", "--top_k", "100"), images @ text, photos)
    assert_ranking(found(capsys, TEXT, "--index", "index", "--top_k", "3"), images @ text, photos)
    _, lines, _ = run(capsys, "search", TEXT, "--index", "index", *EXACT)
    assert (
        len(lines) == 10
        and lines[0] == f"{(images @ text).max():.4f}\t{photos}/photos/{NAMES[(images @ text).argmax()]}"
    )


def test_an_image_finds_itself(index, photos, embeds, capsys):
    results = found(capsys, "--image", "photos/04.png", "--index", "index")
    assert_ranking(results, embeds[0] @ embeds[0][4], photos)
    assert results[0] == (str(photos / "photos" / "04.png"), pytest.approx(1, abs=1e-6))


def test_the_index_is_a_dataset(index, embeds):
    dataset = load_from_disk(str(index)).with_format("numpy")
    dataset.load_faiss_index("embedding", index / "embedding.faiss")
    np.testing.assert_allclose(dataset["embedding"][:], embeds[0], atol=1e-6)
    scores, rows = dataset.get_nearest_examples("embedding", embeds[1], k=1)
    assert rows["path"][0].endswith(NAMES[(embeds[0] @ embeds[1]).argmax()])


def test_bfloat16_has_the_same_space(index, capsys, vlkd_dir):
    rounded = ("--dtype", "bfloat16", "--device", "cpu")
    assert main(["embed", "photos", "--model", vlkd_dir, "--output", "rounded", *rounded]) == 0
    norms = np.linalg.norm(load_from_disk("rounded").with_format("numpy")["embedding"][:], axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    capsys.readouterr()
    (_, score), *_ = found(capsys, "--image", "photos/04.png", "--index", "rounded")
    assert score == pytest.approx(1, abs=0.01)


@pytest.mark.slow  # an export takes half a minute
def test_an_index_by_onnx_is_searched_with_pytorch(photos, vlkd_dir, embeds, capsys, monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(backends, "cached_assets_path", lambda *names: cache)
    assert main(["embed", "photos", "--model", vlkd_dir, "--output", "index", "--backend", "onnx"]) == 0
    capsys.readouterr()
    assert_ranking(found(capsys, TEXT, "--index", "index"), embeds[0] @ embeds[1], photos)
    assert main(["search", TEXT, "--index", "index", "--json", "--backend", "onnx"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert_ranking([(row["image"], row["score"]) for row in results], embeds[0] @ embeds[1], photos)


def test_another_working_directory_and_a_moved_index(index, photos, capsys, monkeypatch):
    before = found(capsys, TEXT, "--index", "index")
    (photos / "elsewhere").mkdir()
    shutil.move("index", "elsewhere/moved")
    monkeypatch.chdir(photos / "elsewhere")
    assert found(capsys, TEXT, "--index", "moved") == before and os.path.isfile(before[0][0])


# ----------------------------------------------------------------------------------------------------- which images


def test_subfolders_hidden_files_and_images_named_twice(photos, vlkd_dir, capsys):
    for name in ("photos/sub/deep/a.png", "photos/.hidden/b.png", "photos/sub/.c.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("photos/00.png", name)
    flat = ["embed", "photos", "photos/00.png", f"{photos}/photos/0*.png", "--model", vlkd_dir]
    assert run(capsys, *flat, "--output", "flat")[:2] == (0, ["12 images in flat"])
    assert load_from_disk("flat")["path"][:] == [str(photos / "photos" / name) for name in NAMES]
    assert run(capsys, "embed", "photos", "--recursive", "--model", vlkd_dir, "--output", "out/all")[0] == 0
    assert {*load_from_disk("out/all")["path"]} - {*load_from_disk("flat")["path"]} == {
        str(photos / "photos/sub/deep/a.png")
    }


def test_unreadable_images_are_reported_and_left_out(photos, vlkd_dir, capsys, web, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 4)  # a batch without a readable image too
    for number in range(4):
        Path(f"photos/99{number}.png").write_bytes(b"\x89PNG and then nothing")
    url = web.add("/a.png", Path("photos/00.png").read_bytes())
    code, out, errors = run(capsys, "embed", "photos", url, f"{url}.gone", "--model", vlkd_dir, "--output", "index")
    assert (code, out) == (1, ["13 images in index"])
    broken = [f"photos/99{number}.png" for number in range(4)]
    assert [line.split(": ")[1] for line in errors] == [*broken, f"{url}.gone"]
    assert load_from_disk("index")["path"][:] == [*(str(photos / "photos" / name) for name in NAMES), url]
    assert found(capsys, "--image", url, "--index", "index", "--top_k", "2")[1][1] == pytest.approx(1, abs=1e-6)


def test_a_name_that_is_not_utf_8_is_reported_and_left_out(photos, vlkd_dir, capsysbinary):
    shutil.copy(b"photos/00.png", b"photos/\xff.png")
    assert main(["embed", "photos", "--model", vlkd_dir, "--output", "index"]) == 1
    output = capsysbinary.readouterr()
    assert output.out == b"12 images in index\n" and b"vlkd: photos/\xff.png: its name is not UTF-8" in output.err


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "no images found in empty"), ("broken.png", "none of the 1 images can be read"), ("no.png", "none of")],
)
def test_without_images_nothing_is_written(photos, vlkd_dir, capsys, name, message):
    (photos / "empty").mkdir()
    (photos / "broken.png").write_bytes(b"\x89PNG and then nothing")
    before = sorted(os.listdir())
    code, out, errors = run(capsys, "embed", name, "--model", vlkd_dir, "--output", "index")
    assert (code, out) == (2, []) and message in errors[-1] and sorted(os.listdir()) == before


# -------------------------------------------------------------------------------------------- models and old indexes


def other_model(vlkd_dir: str, folder: Path) -> Path:
    """A copy of the model with one bit changed."""
    folder = Path(shutil.copytree(vlkd_dir, folder))
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_another_model_is_refused(index, photos, vlkd_dir, capsys):
    other = other_model(vlkd_dir, photos / "other")
    code, out, errors = run(capsys, "search", TEXT, "--index", "index", "--model", "other")
    assert (code, out, len(errors)) == (2, [], 1)
    assert "'other' has other files than the model that made --index index" in errors[0] and vlkd_dir in errors[0]
    shutil.rmtree(other)
    shutil.copytree(vlkd_dir, other)
    assert run(capsys, "search", TEXT, "--index", "index", "--model", "other")[0] == 0


def test_a_model_that_has_moved(photos, vlkd_dir, capsys):
    shutil.copytree(vlkd_dir, "model")
    assert run(capsys, "embed", "photos", "--model", "model", "--output", "index")[0] == 0
    shutil.move("model", "moved")
    code, _, errors = run(capsys, "search", TEXT, "--index", "index")
    assert code == 2 and len(errors) == 1
    assert f"'{photos / 'model'}' is not a VLKD checkpoint" in errors[0] and "--model" in errors[0]
    assert run(capsys, "search", TEXT, "--index", "index", "--model", "moved")[0] == 0


def test_what_exists_is_replaced_only_when_told_to(index, vlkd_dir, capsys):
    command = ("embed", "photos/03.png", "--model", vlkd_dir, "--output")
    code, _, errors = run(capsys, *command, "index")
    assert code == 2 and "--output index is an index; give a new folder, or replace it with --overwrite" in errors[0]
    code, _, errors = run(capsys, *command, "photos", "--overwrite")
    assert code == 2 and "--output photos exists and is not an index" in errors[0] and len(os.listdir("photos")) == 12
    assert run(capsys, *command, "index", "--overwrite")[0] == 0
    assert len(found(capsys, TEXT, "--index", "index")) == 1 and sorted(os.listdir()) == ["index", "photos"]


def test_an_error_keeps_the_old_index(index, vlkd_dir, capsys, monkeypatch):
    before = found(capsys, TEXT, "--index", "index")

    def full(*args):
        raise OSError("No space left on device")

    for place, name in ((search.Dataset, "save_faiss_index"), (search.Dataset, "save_to_disk")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            command = ("embed", "photos/03.png", "--model", vlkd_dir, "--output", "index", "--overwrite")
            assert run(capsys, *command)[0] == 2
        assert found(capsys, TEXT, "--index", "index") == before and sorted(os.listdir()) == ["index", "photos"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vlkd_index.json", None),
        ("vlkd_index.json", b'{"model": "m"}'),
        ("embedding.faiss", None),
        ("embedding.faiss", b"IxFI"),
        ("data-00000-of-00001.arrow", None),
        ("data-00000-of-00001.arrow", b"\xff\xff\xff\xff"),
        ("state.json", b"{"),
    ],
)
def test_a_broken_index_is_one_line(index, capsys, name, content):
    (index / name).unlink()
    if content is not None:
        (index / name).write_bytes(content)
    code, out, errors = run(capsys, "search", TEXT, "--index", "index")
    assert (code, out, len(errors)) == (2, [], 1) and "--index index " in errors[0] and "vlkd embed" in errors[0]


def test_files_of_two_indexes(index, vlkd_dir, capsys):
    assert run(capsys, "embed", "photos/03.png", "--model", vlkd_dir, "--output", "one")[0] == 0
    shutil.copy("one/embedding.faiss", "index")
    code, _, errors = run(capsys, "search", TEXT, "--index", "index")
    assert code == 2 and "has 1 elements while the dataset has 12" in errors[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give a text, or an image with --image"),
        ([TEXT, "--image", "photos/00.png"], "not both"),
        ([" "], "the text to search for is empty"),
        (["photos/00.png"], "'photos/00.png' is an image; to find images like it, write --image 'photos/00.png'"),
        (["nowhere.jpg"], "'nowhere.jpg' is an image"),
        ([TEXT, "--top_k", "0"], "--top_k 0 must be 1 or more"),
        (["--image", "nowhere.png"], "--image nowhere.png: there is no such file"),
        (["dog " * 100], "BART accepts at most 64"),
        ([TEXT, "--html", "photos/00.png"], "--html photos/00.png exists"),
        ([TEXT, "--index", "photos"], "--index photos is not an index"),
    ],
)
def test_mistakes_are_one_line(index, capsys, argv, message):
    code, out, errors = run(capsys, "search", "--index", "index", *argv)
    assert (code, out, len(errors)) == (2, [], 1) and message in errors[0]


# --------------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """The texts of a page by tag, its images, and every attribute that loads or links to something."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.texts, self.images, self.links = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src", "srcset") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def of(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]


def thumbnail(attributes: dict[str, str]) -> Image.Image:
    kind, data = attributes["src"].split(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_the_page_of_a_text(photos, vlkd_dir, capsys):
    name = """<b onclick='x'>&amp; "q" $title.png"""
    shutil.copy("photos/00.png", f"photos/{name}")
    assert run(capsys, "embed", "photos", "--model", vlkd_dir, "--output", "index")[0] == 0
    query = "<script>alert('x')</script> & $total"
    code, lines, _ = run(capsys, "search", query, "--index", "index", "--html", "out/page.html", "--top_k", "20")
    rows = [line.split("\t") for line in lines]
    page = Page(Path("out/page.html").read_text(encoding="utf-8"))
    assert code == 0 and len(rows) == 13 and os.listdir("out") == ["page.html"] and page.open == []
    assert page.of("h1") == page.of("title") == [f"“{query}”"] and page.of("script") == []
    assert page.of("p") == ["The best 13 of 13 images. The scores are cosine similarities."]
    assert page.of("b") == [score for score, _ in rows]
    assert page.of("figcaption") == [path for _, path in rows] and str(photos / "photos" / name) in page.of(
        "figcaption"
    )
    assert [image["alt"] for image in page.images] == [Path(path).name for _, path in rows]
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)  # nothing is loaded from elsewhere
    for image, (_, path) in zip(page.images, rows, strict=True):
        shown, original = thumbnail(image), Image.open(path).convert("RGB").resize((320, 160))
        assert shown.size == (320, 160)  # of 400 x 200
        for place in ((20, 80), (300, 80)):
            np.testing.assert_allclose(shown.getpixel(place), original.getpixel(place), atol=12)


def test_the_page_of_an_image_and_an_image_that_is_gone(index, capsys):
    os.remove("photos/03.png")
    command = ("search", "--image", "photos/04.png", "--index", "index", "--html", "page.html", "--top_k", "12")
    code, lines, errors = run(capsys, *command)
    gone = str(index.parent / "photos" / "03.png")
    assert code == 1 and len(lines) == 12 and errors == [f"vlkd: {gone}: there is no such file"]
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert page.of("h1") == ["Images like photos/04.png"] and page.images[0]["alt"] == "04.png"
    assert len(page.images) == 1 + 11 and page.of("div") == ["cannot be read"] and gone in page.of("figcaption")
    assert page.images[0]["src"] == page.images[1]["src"]  # the query, and itself as the best image
    code, _, errors = run(capsys, *command)
    assert code == 2 and "--html page.html exists" in errors[0]
    assert run(capsys, *command, "--overwrite")[0] == 1
