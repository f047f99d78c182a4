"""`vlkd push --space`: the Space on a loopback Hub is complete, and its app.py runs."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard
from loopback_hub import check_card, running_hub

pytest.importorskip("gradio")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    return {**os.environ, **hub.environment(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def push(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainer.cli", "push", *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pushed(hub, environment, vlkd_dir) -> list[str]:
    """What the command prints."""
    ran = push(environment, vlkd_dir, "user/tiny", "--space", "user/page", "--private")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_space_is_complete(hub, pushed):
    model, space = (hub.repos[name].branches["main"] for name in ("user/tiny", "spaces/user/page"))
    assert pushed == [f"{hub.url}/user/tiny/commit/{model}", f"{hub.url}/spaces/user/page/commit/{space}"]
    assert hub.repos["spaces/user/page"].private and len(hub.repos["spaces/user/page"].commits) == 2
    files = {name: content.decode() for name, content in hub.files("spaces/user/page").items()}
    assert files.keys() == {"app.py", "demo_page.py", "README.md", "requirements.txt"}
    assert files["demo_page.py"] == (ROOT / "trainer" / "inference" / "demo_page.py").read_text(encoding="utf-8")
    assert f'"revision": "{model}"' in files["app.py"] and 'MODEL = "user/tiny"' in files["app.py"]
    names = {line.split(">")[0].split("<")[0] for line in files["requirements.txt"].splitlines()}
    assert {"torch", "transformers", "pillow"} <= names and "datasets" not in names
    assert check_card(files["README.md"]) == []
    header = SpaceCard(files["README.md"]).data
    assert (header.sdk, header.sdk_version, header.app_file) == ("gradio", version("gradio"), "app.py")
    assert header.models == ["user/tiny"] and header.license == "apache-2.0" and "tiny" in header.title


def test_a_wrong_name_is_found_before_the_model_is_pushed(hub, environment, vlkd_dir):
    ran = push(environment, vlkd_dir, "user/other", "--space", "user/a page")
    assert ran.returncode == 2 and "user/a page" in ran.stderr and "user/other" not in hub.repos


@pytest.mark.slow
def test_the_app_of_a_space_runs(hub, pushed, environment, model, processor, images, tmp_path):
    """In a folder with nothing but the Space's files, without the package."""
    from gradio_client import Client
    from served_page import caption_of, free_port, wait_for, written

    for name, content in hub.files("spaces/user/page").items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "examples").mkdir()
    images[0].save(tmp_path / "examples" / "photo.png")
    port = free_port()
    environment = {**environment, "PYTHONPATH": "", "GRADIO_SERVER_PORT": str(port)}
    with (tmp_path / "log").open("wb") as log:
        app = subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        wait_for(port, app)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        assert caption_of(client, tmp_path / "examples" / "photo.png") == written(model, processor, images[0])[0]
        assert str(client.config).count("photo.png")
    finally:
        app.kill()
        app.wait()
