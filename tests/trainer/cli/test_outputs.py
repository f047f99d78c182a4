"""Files that `vlkd caption` and `vlkd ask` write: new, continued after a stop, and never over a user's file."""

import csv
import json
import os
import resource
from pathlib import Path

import pytest
from datasets import load_dataset

from trainer.cli import main
from trainer.cli.outputs import RecordFile
from trainer.data.sources import load_split

QUESTION = "what is it?"


@pytest.fixture
def folder(images, tmp_path, monkeypatch) -> Path:
    """The working directory: photos/ with two images, and a third in photos/more."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, image in zip(("a.png", "b.png", "more/c.png"), images, strict=False):
        image.save(tmp_path / "photos" / name)
    return tmp_path


@pytest.fixture
def caption(vlkd_dir, capsys):
    """Runs `vlkd caption`; returns the exit code, stdout and stderr."""

    def run(*argv: str, command: str = "caption") -> tuple[int, str, str]:
        code = main([command, *argv, "--model", vlkd_dir])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def captions(caption, folder) -> dict[str, str]:
    """What `vlkd caption` prints."""
    return dict(line.split("\t") for line in caption("photos", "--recursive")[1].splitlines())


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_subfolders(captions):
    assert list(captions) == ["photos/a.png", "photos/b.png", "photos/more/c.png"]


def test_hidden_files_are_no_images(folder, caption):
    (folder / "photos" / ".cache").mkdir()
    os.link("photos/a.png", "photos/.cache/a.png")
    os.link("photos/a.png", "photos/.a.png")
    assert len(caption("photos", "--recursive")[1].splitlines()) == 3


def test_json_lines(folder, caption, captions):
    assert caption("photos", "--recursive", "--output", "out.jsonl")[:2] == (0, "")
    assert lines(folder / "out.jsonl") == [{"image": name, "caption": text} for name, text in captions.items()]


def test_csv(folder, caption, captions):
    assert caption("photos", "--output", "out.csv")[0] == 0
    with open("out.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["image", "caption"], *([name, captions[name]] for name in list(captions)[:2])]


def test_answers(folder, caption):
    assert caption("photos", QUESTION, "--output", "out.jsonl", command="ask")[0] == 0
    assert caption("photos", "where?", "--output", "out.jsonl", "--skip_existing", command="ask")[0] == 0
    found = lines(folder / "out.jsonl")
    assert [row["question"] for row in found] == [QUESTION, QUESTION, "where?", "where?"]
    assert list(found[0]) == ["image", "question", "answer"]


def test_sidecars(folder, caption, captions):
    assert caption("photos", "--recursive", "--sidecar")[0] == 0
    assert {str(file): file.read_text() for file in sorted(folder.rglob("*.txt"))} == {
        str(folder / name.replace(".png", ".txt")): text + "\n" for name, text in captions.items()
    }
    assert not list(folder.rglob("*.part"))


def test_metadata_makes_a_dataset(folder, caption, captions):
    assert caption("photos", "--recursive", "--metadata")[0] == 0
    rows = load_dataset("imagefolder", data_dir="photos", split="train")
    assert sorted(rows["caption"]) == sorted(captions.values())
    assert {row["file_name"] for row in lines(folder / "photos" / "metadata.jsonl")} == {
        "a.png",
        "b.png",
        "more/c.png",
    }


def test_captions_of_all_kinds_are_a_dataset_for_training(folder, caption, captions):
    assert caption("photos", "--sidecar", "--metadata")[0] == 0
    rows = load_split("photos", "train")
    assert sorted(rows["caption"]) == sorted(captions[name] for name in list(captions)[:2])


@pytest.mark.parametrize("name", ["train", "test"])
def test_splits_have_metadata_of_their_own(folder, caption, name):
    os.rename("photos/more", f"photos/{name}")
    code, _, errors = caption("photos", "--recursive", "--metadata")
    assert code == 2 and f"photos/{name} is a split of a dataset" in errors
    assert caption(f"photos/{name}", "--metadata")[0] == 0


def test_a_folder_has_one_file_of_metadata(folder, caption):
    (folder / "photos" / "metadata.csv").write_text("file_name,label\na.png,1\n")
    code, _, errors = caption("photos", "--metadata")
    assert code == 2 and "photos/metadata.csv exists" in errors


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("torn", [True, False])
def test_a_stopped_run_is_continued(folder, caption, name, torn):
    """Also if it was killed while it wrote a line."""
    assert caption("photos", "--recursive", "--output", name)[0] == 0
    whole = (folder / name).read_bytes()
    end = whole.rstrip().rfind(b"\n") + 1
    (folder / name).write_bytes(whole[: end + 9 * torn])
    code, _, errors = caption("photos", "--recursive", "--output", name, "--skip_existing")
    assert (code, (folder / name).read_bytes()) == (0, whole)
    assert "2 of 3 images had their text" in errors


def test_a_finished_run_needs_no_model(folder, caption, monkeypatch):
    options = ("photos", "--sidecar", "--output", "out.csv")
    assert caption(*options)[0] == 0
    before = {file: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    monkeypatch.setattr("trainer.cli.caption.load_for_inference", None)
    assert caption(*options, "--skip_existing")[0] == 0
    assert {file: file.read_bytes() for file in folder.rglob("*.*") if file.is_file()} == before


def test_each_output_gets_what_it_lacks(folder, caption, captions):
    (folder / "photos" / "a.txt").write_text("my own text")
    assert caption("photos", "--sidecar", "--output", "out.jsonl", "--skip_existing")[0] == 0
    assert (folder / "photos" / "a.txt").read_text() == "my own text"
    assert (folder / "photos" / "b.txt").read_text() == captions["photos/b.png"] + "\n"
    assert len(lines(folder / "out.jsonl")) == 2


@pytest.mark.parametrize(
    ("options", "file"),
    [
        (["--output", "out.csv"], "out.csv"),
        (["--sidecar"], "photos/b.txt"),
        (["--metadata"], "photos/metadata.jsonl"),
    ],
)
def test_a_file_that_exists(folder, caption, options, file):
    """It is an error, which changes nothing; --overwrite replaces it."""
    Path(file).write_text("mine\n")
    code, out, errors = caption("photos", *options)
    assert (code, out) == (2, "") and f"{file} exists" in errors and "--overwrite" in errors
    assert Path(file).read_text() == "mine\n" and len(list(folder.rglob("*.txt"))) == (file == "photos/b.txt")
    assert caption("photos", *options, "--overwrite")[0] == 0
    assert "mine" not in Path(file).read_text()


def test_a_line_of_an_editor_is_kept(folder, caption, captions):
    """It may have no line break at its end."""
    own = json.dumps({"image": "photos/a.png", "caption": "my own text"})
    (folder / "out.jsonl").write_text(own)
    assert caption("photos", "--output", "out.jsonl", "--skip_existing")[0] == 0
    assert lines(folder / "out.jsonl") == [
        json.loads(own),
        {"image": "photos/b.png", "caption": captions["photos/b.png"]},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_of_an_editor_is_continued(folder, caption, captions, end):
    """With any line ends, a byte order mark, and no line break at its end."""
    own = f"\ufeffimage,caption{end}photos/a.png,my own text".encode()
    (folder / "out.csv").write_bytes(own)
    assert caption("photos", "--output", "out.csv", "--skip_existing")[0] == 0
    assert (folder / "out.csv").read_bytes() == own + f"\r\nphotos/b.png,{captions['photos/b.png']}\r\n".encode()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_names_of_all_kinds_are_continued(folder, caption, images, name):
    for letter in ("\n", "\r", "\x0b", "\x1c", "\x85", "\u2028", '"', ",", "😀"):
        images[0].save(f"photos/x{letter}y.png")
    assert caption("photos", "--output", name)[0] == 0
    whole = (folder / name).read_bytes()
    assert caption("photos", "--output", name, "--skip_existing")[0] == 0
    assert (folder / name).read_bytes() == whole


def test_an_empty_caption_is_a_caption(folder, caption):
    own = "".join(json.dumps({"image": f"photos/{name}.png", "caption": ""}) + "\n" for name in "ab")
    (folder / "out.jsonl").write_text(own)
    assert caption("photos", "--output", "out.jsonl", "--skip_existing")[0] == 0
    assert (folder / "out.jsonl").read_text() == own


def records(name: str) -> RecordFile:
    return RecordFile(Path(name), ["a", "b"], lambda image: {"image": image}, "caption", "refuse")


def test_two_programs_do_not_write_one_file(folder):
    first, second = records("out.jsonl"), records("out.jsonl")
    first.write([("a", "text")])
    with pytest.raises(ValueError, match="was changed by another program"):
        second.write([("b", "text")])
    first.write([("b", "text")])
    assert len(lines(folder / "out.jsonl")) == 2


def test_a_full_disk_leaves_whole_records(folder):
    file = records("out.jsonl")
    file.write([("a", "text")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.end + 10, hard))
    try:
        with pytest.raises(OSError):
            file.write([("b", "text")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert lines(folder / "out.jsonl") == [{"image": "a", "caption": "text"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.csv", "caption,image\na dog,photos/a.png\n"),
        ("out.csv", "id,image,caption\n1,photos/a.png,a dog\n"),
        ("out.csv", "notes"),
        ("out.csv", "notes\r of mine\r"),
        ("out.jsonl", '[{"image": "photos/a.png", "caption": "a dog"}]'),
        ("out.jsonl", "notes"),
        ("out.jsonl", '{"file": "a.png"'),
    ],
)
def test_files_of_another_kind_are_left_alone(folder, caption, name, content):
    (folder / name).write_bytes(content.encode())
    code, _, errors = caption("photos", "--output", name, "--skip_existing")
    assert code == 2 and f"{name} cannot be continued" in errors
    assert (folder / name).read_bytes() == content.encode()


@pytest.mark.parametrize("content", ['{"file": "a.png"}\n', "[1]\n", "a dog\n", '{"image": "photos/a.png"}\n'])
def test_records_of_another_kind(folder, caption, content):
    (folder / "out.jsonl").write_text(content)
    code, _, errors = caption("photos", "--output", "out.jsonl", "--skip_existing")
    assert code == 2 and "out.jsonl cannot be continued" in errors
    assert (folder / "out.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "out.txt"], "must end in .jsonl or .csv"),
        (["--output", "nowhere/out.csv"], "the folder nowhere does not exist"),
        (["--skip_existing"], "--skip_existing needs a file to write"),
        (["--overwrite"], "--overwrite needs a file to write"),
        (["--output", "out.csv", "--overwrite", "--skip_existing"], "exclude each other"),
        (["photos/a.png", "--metadata"], "photos/a.png is not a folder"),
        (["http://127.0.0.1/a.png", "--sidecar"], "is a URL"),
        (["--prompt", "a <mask> and a <mask>"], "has 2 <mask>"),
        (["--prompt", "\udcff"], "the text is not UTF-8"),
        (["--push_to_hub", "user/name"], "need --dataset"),
        (["--metadata", "--output", "photos/metadata.jsonl"], "would be written twice"),
    ],
)
def test_mistakes(folder, caption, options, message):
    code, out, errors = caption("photos", *options)
    assert (code, out) == (2, "") and message in errors.splitlines()[-1]


def test_two_images_of_one_name(folder, caption, images):
    images[0].save("photos/a.jpg")
    code, _, errors = caption("photos", "--sidecar")
    assert code == 2 and "photos/a.jpg and photos/a.png would share photos/a.txt" in errors


def test_an_image_named_twice_has_one_text(folder, caption):
    assert caption("photos", "photos/*.png", "--sidecar", "--output", "out.csv")[0] == 0
    assert len(list(folder.rglob("*.txt"))) == 2 and len((folder / "out.csv").read_text().splitlines()) == 3


def test_an_image_is_not_replaced_by_its_text(folder, caption, images):
    images[0].save("photos/a.txt", "PNG")
    before = (folder / "photos" / "a.txt").read_bytes()
    code, _, errors = caption("photos/a.txt", "--sidecar", "--overwrite")
    assert code == 2 and "the text of photos/a.txt would replace the image" in errors
    assert (folder / "photos" / "a.txt").read_bytes() == before


def test_names_that_are_not_utf8(folder, caption):
    os.rename("photos/a.png", b"photos/\xe9.png")
    for name in ("out.jsonl", "out.csv"):
        assert caption("photos", "--output", name)[0] == 0
        before = (folder / name).read_bytes()
        assert caption("photos", "--output", name, "--skip_existing")[0] == 0
        assert (folder / name).read_bytes() == before
    assert lines(folder / "out.jsonl")[1]["image"] == os.fsdecode(b"photos/\xe9.png")


def test_prompt(folder, caption, model, processor, images):
    _, out, _ = caption("photos/a.png", "--prompt", "a drawing of", "--dtype", "float32", "--device", "cpu")
    batch = processor(images=images[0], text="a drawing of")
    ids = model.generate(**batch, max_new_tokens=40, num_beams=1, do_sample=False)
    text = processor.post_process_generation(ids, batch["input_ids"])[0]
    assert out == f"photos/a.png\t{' '.join(text.split())}\n"
