"""`vlkd caption` and `vlkd ask` on real files: what is printed where, and the exit codes."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_vlkd import VLKDForConditionalGeneration
from trainer.cli import caption, main
from trainer.cli import images as image_files
from trainer.inference import captioner
from trainer.precision import fastest_dtype

ROOT = Path(__file__).parents[3]
QUESTION = "what color is the circle?"
EXACT = ("--dtype", "float32", "--device", "cpu")


@pytest.fixture
def photos(images, tmp_path, monkeypatch):
    """The working directory: photos/ with three images and two files that are none, and one that is broken."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, image in zip(("b.png", "a.png", "c.JPG"), images, strict=False):
        image.save(tmp_path / "photos" / name, "PNG")
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "paper.pdf").write_text("Pillow writes such files and reads none")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and then nothing")
    return tmp_path


def expected(model, processor, image: Image.Image, prompt: str | None, first_sentence: bool) -> str:
    batch = processor(images=image, text=prompt)
    ids = model.generate(**batch, max_new_tokens=40, num_beams=1, do_sample=False)
    text = processor.post_process_generation(ids, batch["input_ids"], first_sentence=first_sentence)[0]
    return " ".join(text.split())


def run(capsys, *argv: str) -> tuple[int, list[str], list[str]]:
    code = main(list(argv))
    output = capsys.readouterr()
    return code, output.out.splitlines(), [line for line in output.err.splitlines() if line.startswith("vlkd")]


def test_captions_of_files(photos, vlkd_dir, model, processor, images, capsys):
    code, out, errors = run(capsys, "caption", "photos/b.png", "photos/a.png", "--model", vlkd_dir, *EXACT)
    captions = [expected(model, processor, image, None, False) for image in images[:2]]
    assert captions[0] != captions[1]
    assert (code, out, errors) == (0, [f"photos/b.png\t{captions[0]}", f"photos/a.png\t{captions[1]}"], [])


def test_answers_as_json(photos, vlkd_dir, model, processor, images, capsys):
    asked = ("photos/b.png", "photos/a.png", QUESTION)
    code, out, errors = run(capsys, "ask", *asked, "--model", vlkd_dir, "--json", *EXACT)
    answers = [expected(model, processor, i, f"Question: {QUESTION} Answer: <mask>", True) for i in images[:2]]
    assert (code, errors) == (0, [])
    assert [json.loads(line) for line in out] == [
        {"image": name, "question": QUESTION, "answer": answer}
        for name, answer in zip(("photos/b.png", "photos/a.png"), answers, strict=True)
    ]


def test_captions_as_json(photos, vlkd_dir, capsys):
    _, out, _ = run(capsys, "caption", "photos/b.png", "--model", vlkd_dir, "--json")
    assert [list(json.loads(line)) for line in out] == [["image", "caption"]]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("photos", ["photos/a.png", "photos/b.png", "photos/c.JPG"]),
        ("photos/*", ["photos/a.png", "photos/b.png", "photos/c.JPG"]),
        ("photos/[ab].png", ["photos/a.png", "photos/b.png"]),
        ("**/b.png", ["photos/b.png"]),
    ],
)
def test_folders_and_patterns(photos, vlkd_dir, capsys, name, found):
    code, out, _ = run(capsys, "caption", name, "--model", vlkd_dir, "--max_new_tokens", "2")
    assert code == 0 and [line.split("\t")[0] for line in out] == found


def test_a_file_may_look_like_a_pattern(photos, vlkd_dir, images, capsys):
    images[0].save("photo[1].png")
    code, out, _ = run(capsys, "caption", "photo[1].png", "--model", vlkd_dir, "--max_new_tokens", "2")
    assert code == 0 and out[0].startswith("photo[1].png\t")


def test_the_rest_is_done_when_images_cannot_be_read(photos, vlkd_dir, capsys):
    (photos / "empty").mkdir()
    names = ["broken.png", "photos/a.png", "nowhere.png", "photos/notes.txt", "empty", "*.jpg", "x" * 300]
    code, out, errors = run(capsys, "caption", *names, "--model", vlkd_dir)
    assert code == 1 and [line.split("\t")[0] for line in out] == ["photos/a.png"]
    assert sorted(line.split(":")[1].strip() for line in errors) == sorted(n for n in names if n != "photos/a.png")
    assert "vlkd: nowhere.png: there is no such file" in errors
    assert any("photos/notes.txt" in line and "Pillow" in line for line in errors)


def test_an_image_of_the_web(photos, vlkd_dir, web, capsys):
    url = web.add("/a.png", (photos / "photos" / "a.png").read_bytes())
    code, out, errors = run(capsys, "caption", url, f"{url}.gone", "photos/a.png", "--model", vlkd_dir)
    assert code == 1 and [line.split("\t")[0] for line in out] == [url, "photos/a.png"]
    assert out[0].split("\t")[1] == out[1].split("\t")[1]
    assert errors == [f"vlkd: {url}.gone: HTTP Error 404: Not Found"]


def test_a_broken_checkpoint_is_one_line(photos, vlkd_dir, tmp_path, capsys):
    broken = shutil.copytree(vlkd_dir, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    code, _, errors = run(capsys, "caption", "photos", "--model", str(broken))
    assert code == 2 and len(errors) == 1 and "--model:" in errors[0] and "deserializing header" in errors[0]
    config = (broken / "config.json").read_text().replace('"projection_dim": 24', '"projection_dim": "many"')
    (broken / "config.json").write_text(config)
    code, _, errors = run(capsys, "caption", "photos", "--model", str(broken))
    assert code == 2 and len(errors) == 1 and "'projection_dim' expected int, got str (value: 'many')" in errors[0]


def test_an_image_named_twice_is_no_failure(photos, vlkd_dir, capsys):
    code, out, _ = run(capsys, "caption", "photos/a.png", "photos/a.png", "--model", vlkd_dir)
    assert code == 0 and len(out) == 2 and out[0] == out[1]


def test_batches_change_nothing_and_many_images_show_progress(photos, vlkd_dir, capsys, monkeypatch):
    one_batch = run(capsys, "ask", "photos", QUESTION, "--model", vlkd_dir)
    monkeypatch.setattr(captioner, "MAX_BATCH", 2)
    monkeypatch.setattr(caption, "MANY", 3)
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=is_terminal: answer)
        assert main(["ask", "photos", QUESTION, "--model", vlkd_dir]) == 0
        output = capsys.readouterr()
        assert output.out.splitlines() == one_batch[1]
        assert ("3/3" in output.err) is is_terminal


def test_batches_become_as_small_as_the_memory(photos, vlkd_dir, capsys, monkeypatch):
    _, due, _ = run(capsys, "caption", "photos", "--model", vlkd_dir, *EXACT)
    sizes, original = [], VLKDForConditionalGeneration.generate

    def generate(self, *args, pixel_values, **kwargs):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 1:
            raise torch.OutOfMemoryError
        return original(self, *args, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(VLKDForConditionalGeneration, "generate", generate)
    assert run(capsys, "caption", "photos", "--model", vlkd_dir, *EXACT)[1] == due
    assert sizes == [3, 1, 1, 1]


def test_options_reach_generate(photos, vlkd_dir, processor, capsys):
    _, short, _ = run(capsys, "caption", "photos/a.png", "--model", vlkd_dir, "--max_new_tokens", "1")
    _, beams, _ = run(capsys, "caption", "photos/a.png", "--model", vlkd_dir, "--num_beams", "4")
    _, greedy, _ = run(capsys, "caption", "photos/a.png", "--model", vlkd_dir)
    assert len({short[0], beams[0], greedy[0]}) == 3 and len(short[0]) < len(greedy[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["caption", "empty", "*.gif"], "no images found in empty, *.gif"),
        (["ask", "photos", " "], "the question is empty"),
        (["ask", "photos/a.png", "photos/b.png"], "must be the question, but 'photos/b.png' is a file, folder or URL"),
        (["ask", "what is it?", "nowhere.jpg"], "must be the question, but 'nowhere.jpg' is a file, folder or URL"),
        (
            ["ask", "what is it?", "http://127.0.0.1/a"],
            "must be the question, but 'http://127.0.0.1/a' is a file, folder or URL",
        ),
        (["ask", "photos/a.png"], "required: question"),
        (["caption"], "no images; give files"),
        (["caption", "photos", "--beams", "2"], "unknown key 'beams'"),
        (["caption", "photos", "--config", "x.yaml"], "unknown key 'config'"),
        (["caption", "photos", "--max_new_tokens", "many"], "--max_new_tokens"),
        (["caption", "photos", "--max_new_tokens", "0"], "max_new_tokens"),
        (["ask", "photos", "a <mask> b?"], "has 2 <mask>"),
        (["ask", "photos", "why? " * 100], "BART accepts at most 64"),
    ],
)
def test_mistakes_are_one_line(photos, vlkd_dir, capsys, argv, message):
    (photos / "empty").mkdir()
    code, out, errors = run(capsys, *argv, "--model", vlkd_dir)
    assert (code, out, len(errors)) == (2, [], 1)
    assert errors[0].startswith("vlkd: error: ") and message in errors[0]


def test_a_model_must_be_a_vlkd_checkpoint(photos, bart_dir, clip_dir, capsys):
    (photos / "config.json").write_text("{}")
    for name in ("./nowhere", "photos", ".", bart_dir, clip_dir):
        code, _, errors = run(capsys, "caption", "photos", "--model", name)
        assert code == 2 and f"--model: '{name}' is not a VLKD checkpoint" in errors[0]
    assert "`model_type`='clip' is not a VLKD" in errors[0]
    assert run(capsys, "caption", "photos")[0] == 2


@pytest.mark.parametrize(("options", "due"), [([], None), (["--dtype", "bfloat16"], "bfloat16")])
def test_device_and_dtype(photos, vlkd_dir, capsys, monkeypatch, options, due):
    """The model computes in the fastest dtype, or in the one that is asked for; on the device that is asked for."""
    used = []
    original = captioner.Captioner.__call__
    monkeypatch.setattr(
        captioner.Captioner, "__call__", lambda self, pixels: used.append(self.model) or original(self, pixels)
    )
    code, out, _ = run(capsys, "caption", "photos/a.png", "--model", vlkd_dir, "--device", "cpu", *options)
    assert code == 0 and len(out) == 1
    dtype = fastest_dtype("cpu") if due is None else getattr(torch, due)
    assert {parameter.dtype for parameter in used[0].parameters()} == {dtype} and used[0].device.type == "cpu"


def test_a_device_that_is_not_there(photos, vlkd_dir, capsys):
    missing = "mps" if torch.cuda.is_available() else "cuda"
    code, _, errors = run(capsys, "caption", "photos", "--model", vlkd_dir, "--device", missing)
    assert code == 2 and f"--device {missing}: PyTorch finds no such device" in errors[0]


# ------------------------------------------------------------------------------------------- what is in a folder


@pytest.fixture
def console(monkeypatch):
    """Runs the command with a stdout of the given encoding; returns the bytes of its lines."""

    def run(encoding: str, *argv: str) -> list[bytes]:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        assert main([*argv, "--max_new_tokens", "3"]) == 0
        return sys.stdout.buffer.getvalue().splitlines()

    return run


def test_names_that_the_console_cannot_show(photos, vlkd_dir, console):
    names = [b"\xff.png", "\u4e2d.png".encode(), "\xe9.png".encode()]
    for name in names:
        shutil.copy(b"photos/a.png", os.path.join(b"photos/", name))
    seen = [b"photos/a.png", b"photos/b.png", b"photos/c.JPG"]
    shown = [line.split(b"\t")[0] for line in console("cp1252", "caption", "photos", "--model", vlkd_dir)]
    assert shown == [*seen, b"photos/\xe9.png", b"photos/\\u4e2d.png", b"photos/\xff.png"]
    shown = [line.split(b"\t")[0] for line in console("utf-8", "caption", "photos", "--model", vlkd_dir)]
    assert shown == [*seen, *(b"photos/" + name for name in names[::-1])]
    for encoding in ("cp1252", "utf-8"):
        lines = console(encoding, "caption", "photos", "--model", vlkd_dir, "--json")
        found = [os.fsencode(json.loads(line.decode(encoding))["image"]) for line in lines]
        assert found == [*seen, *(b"photos/" + name for name in names[::-1])]


def test_photographs_that_cannot_be_read_are_reported(photos, vlkd_dir, capsys, monkeypatch):
    monkeypatch.setattr(image_files, "IMAGE_EXTENSIONS", image_files.IMAGE_EXTENSIONS - {".heic"})
    for name in ("1.HEIC", "2.heic", "3.CR2", ".DS_Store", "readme"):
        (photos / "photos" / name).write_bytes(b"?")
    (photos / "photos" / "folder.jpg").mkdir()
    code, out, errors = run(capsys, "caption", "photos", "--model", vlkd_dir, "--max_new_tokens", "3")
    assert code == 1 and len(out) == 3
    assert errors == [
        "vlkd: photos: skipped 1 .cr2, 2 .heic: Pillow cannot read them; install pillow-heif to read HEIC, or convert "
        "them to JPEG or PNG",
        "vlkd: photos: skipped 1 without extension, 1 .pdf, 1 .txt: not images",
    ]


def test_a_name_of_two_lines_is_one_line(photos, vlkd_dir, capsys):
    shutil.copy("photos/a.png", "photos/a\nb.png")
    code, out, _ = run(capsys, "caption", "photos/a\nb.png", "--model", vlkd_dir, "--max_new_tokens", "3")
    assert code == 0 and len(out) == 1 and out[0].startswith("photos/a\\nb.png\t")


@pytest.mark.parametrize("option", ["--num_beams", "--max_new_tokens"])
def test_numbers_below_one(photos, vlkd_dir, capsys, option):
    code, _, errors = run(capsys, "caption", "photos", "--model", vlkd_dir, option, "0")
    assert code == 2 and errors == [f"vlkd: error: {option} 0 must be 1 or more."]


def test_other_files_are_no_failure(photos, vlkd_dir, capsys):
    code, out, errors = run(capsys, "caption", "photos/*", "--model", vlkd_dir, "--max_new_tokens", "3")
    assert (code, len(out), errors) == (0, 3, ["vlkd: photos/*: skipped 1 .pdf, 1 .txt: not images"])


def test_a_broken_link_and_a_file_without_extension(photos, vlkd_dir, capsys):
    (photos / "photos" / "link.png").symlink_to("gone.png")
    shutil.copy("photos/a.png", "photo")
    code, out, errors = run(capsys, "caption", "photos", "photo", "--model", vlkd_dir, "--max_new_tokens", "3")
    assert code == 1 and [line.split("\t")[0] for line in out][-1] == "photo" and len(out) == 4
    assert "vlkd: photos/link.png: there is no such file" in errors


def test_a_large_folder_is_listed_fast(tmp_path):
    for number in range(10_000):
        (tmp_path / f"{number}.jpg").touch()
    start = time.perf_counter()
    files, others = image_files.find_images(str(tmp_path))
    assert len(files) == 10_000 and not others and time.perf_counter() - start < 5


def test_a_model_without_its_processor_is_one_line(photos, vlkd_dir, tmp_path, capsys):
    for number, name in enumerate(("processor_config.json", "tokenizer.json")):
        folder = shutil.copytree(vlkd_dir, tmp_path / f"model{number}")
        (folder / name).unlink()
        code, _, errors = run(capsys, "caption", "photos/a.png", "--model", str(folder))
        assert (
            code == 2
            and len(errors) == 1
            and f"--model: '{folder}' is not a VLKD checkpoint that can be read" in errors[0]
        )


def test_an_interrupt(photos, vlkd_dir):
    """As Ctrl-C after the first batch: no traceback, and what was done is kept."""
    for number in range(400):
        shutil.copy("photos/a.png", f"photos/{number}.png")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "trainer.cli", "caption", "photos", "--model", vlkd_dir]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    pipes["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline().startswith(b"photos/0.png\t")
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait() == 130 and b"Traceback" not in errors and b"Exception ignored" not in errors
