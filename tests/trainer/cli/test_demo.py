"""`vlkd demo`: its examples and mistakes, and the page in a browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from served_page import free_port, wait_for, written

from trainer.cli import main

pytest.importorskip("gradio")
ROOT = Path(__file__).parents[3]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
QUESTION = "what color is the circle?"


def test_examples(images, tmp_path):
    from trainer.cli.demo import find_examples

    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images found; give a folder"):
        find_examples(str(tmp_path), "model")
    for name in ("b.png", "a.jpg"):
        images[0].save(tmp_path / name)
    assert find_examples(str(tmp_path), "model") == [tmp_path / "a.jpg", tmp_path / "b.png"]
    assert find_examples(None, str(tmp_path)) == []
    (tmp_path / "train.yaml").write_text("dataset_name: microworld.dataset:load\n")
    found = find_examples(None, str(tmp_path))
    assert [image.size for image in found] == [(144, 144)] * 10


def test_port_in_use(vlkd_dir, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["demo", "--model", vlkd_dir, "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there" in capsys.readouterr().err


def test_no_model(capsys):
    assert main(["demo", "--model", "no/such/folder"]) == 2
    assert "--model: 'no/such/folder' is not a VLKD checkpoint" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def files(images, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(images):
        image.save(folder / f"photo-{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def served(vlkd_dir, files, tmp_path_factory):
    """The command's URL. Ctrl-C ends it, with exit code 0."""
    port, log = free_port(), tmp_path_factory.mktemp("demo") / "log"
    options = ["--model", vlkd_dir, "--examples", str(files[0].parent), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "trainer.cli", "demo", *options]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert f"http://127.0.0.1:{port}/ (Ctrl-C ends the page)" in log.read_text()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page as another user; no page may ask another server for anything."""
    contexts, others = [], []

    def visit(width: int = 1280, height: int = 900):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        local = (served, served.replace("http", "ws", 1), "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(local) or others.append(request.url))
        page.goto(served)
        page.get_by_role("textbox", name="Question").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert others == []


def upload(page, path: Path) -> None:
    page.locator("#image input[type=file]").first.set_input_files(path)


def shown(page, number: int) -> str:
    """The text of a result, once it is there: 0 the caption, 1 the answer."""
    text = page.locator(".result").nth(number).locator(".text").first
    text.wait_for()
    return text.inner_text()


def ask(page, question: str) -> str:
    page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    return shown(page, 1)


@pytest.mark.slow
def test_upload_caption_ask_compare(visit, files, images, model, processor):
    page = visit()
    upload(page, files[0])
    caption, confidence = written(model, processor, images[0])
    assert shown(page, 0).split() == caption.split()
    assert page.locator(".result .confidence").first.inner_text() == f"{confidence:.0%}"
    assert ask(page, QUESTION).split() == written(model, processor, images[0], QUESTION)[0].split()
    page.get_by_role("tab", name="Compare texts").click()
    page.get_by_role("textbox", name="Texts").fill("red circle\nblue square\ntwo dogs")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".result .text", has_text="two dogs").wait_for()
    shares = page.locator(".result").nth(2).locator(".confidence").all_inner_texts()
    assert len(shares) == 3 and abs(sum(int(share.rstrip("%")) for share in shares) - 100) <= 2


@pytest.mark.slow
def test_another_image_clears_the_results(visit, files, images, model, processor):
    page = visit()
    page.locator("button.gallery-item").first.click()
    assert shown(page, 0).split() == written(model, processor, images[0])[0].split()
    ask(page, QUESTION)
    page.locator("button.gallery-item").nth(1).click()
    caption = written(model, processor, images[1])[0]
    page.locator(".result .text", has_text=re.compile(r"\s+".join(map(re.escape, caption.split())))).wait_for()
    assert page.locator(".result .text").count() == 1


@pytest.mark.slow
def test_unreadable_file_and_then_an_image(visit, files, images, model, processor, tmp_path):
    page = visit()
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:60])
    upload(page, tmp_path / "broken.png")
    page.get_by_text("broken.png cannot be read as an image").first.wait_for()
    page.get_by_role("button", name="Remove Image").click()
    upload(page, files[1])
    assert shown(page, 0).split() == written(model, processor, images[1])[0].split()


@pytest.mark.slow
def test_two_users_at_once(visit, files, images, model, processor):
    pages = [visit(), visit()]
    for page, file in zip(pages, files, strict=False):
        upload(page, file)
    for page in pages:
        page.get_by_role("textbox", name="Question").fill(QUESTION)
        page.get_by_role("textbox", name="Question").press("Enter")
    for page, image in zip(pages, images, strict=False):
        assert shown(page, 0).split() == written(model, processor, image)[0].split()
        assert shown(page, 1).split() == written(model, processor, image, QUESTION)[0].split()


@pytest.mark.slow
def test_a_phone_needs_no_horizontal_scrolling(visit, files):
    page = visit(390, 844)
    width = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert page.evaluate(width) == [390, 390]
    upload(page, files[0])
    shown(page, 0)
    ask(page, QUESTION)
    assert page.evaluate(width) == [390, 390]
    for name in ("Ask", "Compare texts"):
        box = page.get_by_role("button", name=name, exact=True).or_(page.get_by_role("tab", name=name)).first
        assert box.bounding_box()["x"] + box.bounding_box()["width"] <= 390
