"""The page of `vlkd demo`, as clients see it over HTTP."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from served_page import free_port, written
from transformers import pipeline

gr = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

QUESTION = "what color is the circle?"
META = {"_type": "gradio.FileData"}  # of files in Gradio's API
QUESTIONS = [QUESTION, "how many?", "is there a dog?", "what is it?"]


@contextmanager
def served(model, processor, examples=()):
    """The page's URL. Pillow's limits end with the page."""
    from trainer.inference.demo_page import launch

    Image.init()
    options = {"server_name": "127.0.0.1", "server_port": free_port(), "share": False, "quiet": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        patch.setitem(Image.OPEN, "EPS", Image.OPEN["EPS"])
        page = launch(model.eval(), processor, "tiny", examples, prevent_thread_lock=True, **options)
        yield page.local_url
        page.close()


@pytest.fixture(scope="module")
def url(model, processor, files, images):
    with served(model, processor, [files[0], images[1]]) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return gradio_client.Client(url, verbose=False)


@pytest.fixture(scope="module")
def files(images, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("uploads")
    paths = [folder / f"photo {number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def ask(client, name: str, *values):
    """The texts of an endpoint's result with their confidences."""
    values = [gradio_client.handle_file(value) if isinstance(value, Path) else value for value in values]
    result = client.predict(*values, api_name=f"/{name}")
    return {one["label"]: one["confidence"] for one in result["confidences"]}


def error_of(client, name: str, *values) -> str:
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        ask(client, name, *values)
    return str(caught.value)


def test_captions_and_answers_with_their_confidence(client, files, images, model, processor):
    captions = [ask(client, "caption", file) for file in files]
    answers = [ask(client, "ask", file, f" {QUESTION}\n") for file in files]
    for question, found in ((None, captions), (QUESTION, answers)):
        due = [written(model, processor, image, question) for image in images]
        assert found == [{text: pytest.approx(confidence, rel=1e-3)} for text, confidence in due]
        assert len({text for text, _ in due}) > 1


def test_answers_are_those_of_the_pipeline(client, files, model, processor):
    answer = pipeline("visual-question-answering", model=model, processor=processor, device="cpu")
    due = answer(str(files[0]), QUESTION, max_new_tokens=40)
    assert [*ask(client, "ask", files[0], QUESTION)] == [one["answer"] for one in due]


def test_compared_texts_have_the_scores_of_the_pipeline(client, files, vlkd_dir):
    lines = ["red circle", "a blue square", "two dogs"]
    score = pipeline("zero-shot-image-classification", model=vlkd_dir, device="cpu")
    due = score(str(files[1]), candidate_labels=lines, hypothesis_template="{}")
    found = ask(client, "compare", files[1], "red circle\n\n  a blue square \nred circle\ntwo dogs\n")
    assert found == {one["label"]: pytest.approx(one["score"], rel=1e-3, abs=1e-6) for one in due}


def test_no_statistics_and_no_fonts_of_other_servers(client, url):
    assert client.config["analytics_enabled"] is False
    assert "fonts.g" not in urlopen(f"{url}theme.css").read().decode()


def test_no_image_no_caption(client):
    assert not client.predict(None, api_name="/caption")


@pytest.mark.parametrize("name", ["caption", "ask", "compare"])
def test_unreadable_file(client, tmp_path, name):
    (tmp_path / "notes.png").write_text("no image")
    more = {"caption": [], "ask": [QUESTION], "compare": ["a\nb"]}[name]
    message = error_of(client, name, tmp_path / "notes.png", *more)
    assert message == "notes.png cannot be read as an image: its 8 bytes are not an image that Pillow can read."


def test_photos_are_upright_and_transparent_ones_on_white(client, files, images, model, processor, tmp_path):
    """The page reads files as the commands do, and not as Gradio does."""
    exif = Image.Exif()
    exif[274] = 6
    images[2].save(tmp_path / "turned.png", exif=exif)
    clear = images[3].copy()
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    white = Image.new("RGB", clear.size, "white")
    for name, due in (("turned", images[2].transpose(Image.Transpose.ROTATE_270)), ("clear", white)):
        assert [*ask(client, "caption", tmp_path / f"{name}.png")] == [written(model, processor, due)[0]]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ask", [None, QUESTION], "Choose an image first."),
        ("compare", [None, "a\nb"], "Choose an image first."),
        ("ask", [0, "  "], "Write a question."),
        ("ask", [0, "a" * 1001], "The text has 1001 characters; shorten it to 1000."),
        ("ask", [0, "what? " * 60], "BART accepts at most 64"),
        ("ask", [0, "<mask> or <mask>"], "keep one"),
        ("compare", [0, "one text\none text"], "Write 2 to 20 different texts, one on each line."),
        ("compare", [0, "\n".join(map(str, range(21)))], "Write 2 to 20 different texts, one on each line."),
        ("compare", [0, "a\n" + "long text " * 50], "BART accepts at most 64"),
    ],
)
def test_mistakes(client, files, name, values, message):
    values = [files[value] if isinstance(value, int) else value for value in values]
    assert message in error_of(client, name, *values)


def post(url: str, name: str, *values) -> tuple[str, Any]:
    """The kind of the last event and its data, over plain HTTP: gradio_client would upload a local file first."""
    body = json.dumps({"data": values}).encode()
    request = Request(f"{url}gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    event = json.load(urlopen(request))["event_id"]
    *_, kind, data = urlopen(f"{url}gradio_api/call/{name}/{event}").read().decode().split("\n")[:-2]
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


@pytest.mark.parametrize("meta", [{"meta": META}, {}, {"meta": {}}])
@pytest.mark.parametrize("name", ["config.json", "photo 0.png", "/etc/passwd", "no such file", "http://127.0.0.1:9/a"])
def test_files_that_nobody_uploaded_are_not_read(url, vlkd_dir, files, name, meta):
    path = {"config.json": f"{vlkd_dir}/{name}", "photo 0.png": str(files[0])}.get(name, name)
    kind, data = post(url, "caption", {"path": path, **meta})
    assert kind == "error" and data["error"] == "The server does not have this image. Upload it."
    assert path not in json.dumps(data)


def test_examples_are_read(url, images, model, processor):
    """A file, and a PIL image."""
    for number in (0, 1):
        kind, (update,) = post(url, "load_example", number)
        assert kind == "complete" and (found := post(url, "caption", update["value"]))[0] == "complete"
        assert found[1][0]["label"] == written(model, processor, images[number])[0]


def test_no_request_stops_the_deletion_of_uploads(model, processor, files, tmp_path, monkeypatch):
    """Gradio's task for it ends at the first path that it cannot delete."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr("trainer.inference.demo_page.KEPT", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "photo.png").write_bytes(files[0].read_bytes())
    folder = {"path": str(tmp_path / "folder"), "meta": META}
    with served(model, processor) as url:
        bad = [folder, {**folder, "path": str(tmp_path)}, [folder], {"path": f"{tmp_path}/photo.png", "more": folder}]
        bad += [{**folder, "path": f"{tmp_path}/{name}"} for name in ("photo.png/a", "a" * 300, "\0", "..")]
        for value in bad:
            assert post(url, "caption", value)[0] == "error"
            assert post(url, "ask", None, value)[0] == "error"
        time.sleep(2.5)
        upload = tmp_path / "upload.png"
        upload.write_bytes(files[0].read_bytes())
        post(url, "caption", {"path": str(upload), "meta": META})
        end = time.monotonic() + 20
        while upload.exists() and time.monotonic() < end:
            time.sleep(0.2)
        assert not upload.exists()


@pytest.mark.parametrize(
    ("name", "mode", "side", "message"),
    [
        ("large.png", "P", 7100, "Image size (50410000 pixels) exceeds limit"),
        ("a.eps", "RGB", 40, "it is an EPS file"),
    ],
)
def test_images_that_cost_too_much_are_refused(client, tmp_path, name, mode, side, message):
    Image.new(mode, (side, side)).save(tmp_path / name)
    assert f"{name} cannot be read as an image: {message}" in error_of(client, "caption", tmp_path / name)


def test_large_files_are_refused(client, tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(20 * 2**20 + 2**16)
    with pytest.raises(Exception, match="(?i)413|too large|exceed"):
        ask(client, "caption", tmp_path / "large.png")


def test_a_question_may_leave_little_room_for_the_answer(client, files, processor):
    lengths = {
        count: len(processor.tokenizer(processor.build_vqa_prompt("a " * count))["input_ids"]) for count in range(64)
    }
    limit = processor.tokenizer.model_max_length
    longest = max(count for count, length in lengths.items() if length <= limit)
    assert lengths[longest] > limit - 40 and ask(client, "ask", files[0], "a " * longest)


def test_users_at_once_get_their_own_answers(url, files, images, model, processor):
    def visit(number: int) -> list:
        client = gradio_client.Client(url, verbose=False)
        return [ask(client, "ask", files[number], question) for question in QUESTIONS]

    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(visit, (0, 1))]
    due = [[written(model, processor, images[number], question) for question in QUESTIONS] for number in (0, 1)]
    assert [[[*one] for one in answers] for answers in found] == [[[text] for text, _ in one] for one in due]
    assert due[0] != due[1]
