"""A Space on the Hub: the page of `vlkd demo` for a model of the Hub."""

import sys
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import CommitInfo, SpaceCardData
from huggingface_hub.utils import validate_repo_id

import trainer.inference
from trainer.hub.repository import create_and_upload

PAGE = "demo_page.py"
APP = '''\
"""The page of `vlkd demo`. Images in the folder `examples` are shown to try."""

from pathlib import Path

import torch
from demo_page import launch
from transformers import AutoModelForImageTextToText, AutoProcessor

MODEL = "{model}"
OPTIONS = {{"revision": "{revision}", "trust_remote_code": True}}  # weights and code of one commit

launch(
    AutoModelForImageTextToText.from_pretrained(MODEL, **OPTIONS).to("cuda" if torch.cuda.is_available() else "cpu"),
    AutoProcessor.from_pretrained(MODEL, **OPTIONS),
    MODEL,
    sorted(Path(__file__).parent.glob("examples/*")),
)
'''
CARD = """\
---
{header}
---

# {title}

Captions of images, answers to questions about them, and a comparison of texts with them, by
[{model}](https://huggingface.co/{model}). `vlkd push --space` made this Space.
"""


def check_space(space_id: str) -> None:
    """Raise an error before anything is uploaded: `space_id` is not "user/space", or gradio is not installed."""
    validate_repo_id(space_id)
    version("gradio")


def push_space(space_id: str, model: CommitInfo, *, private: bool = False) -> CommitInfo:
    """Upload a Space that runs a pushed model, by one commit.

    Args:
        space_id: "user/space"; created if it does not exist.
        model: the commit of the model, which the Space loads.
        private: whether a new Space is private.

    Raises:
        PackageNotFoundError: gradio, whose version the Space takes, is not installed.
        ValueError: the Hub rejects the upload.
    """
    files = space_files(model.repo_url.repo_id, model.oid)
    return create_and_upload(
        files, space_id, private=private, repo_type="space", space_sdk="gradio", message="Upload the page of VLKD"
    )


def space_files(model: str, revision: str) -> dict[str, bytes]:
    """The files of a Space by their names.

    Args:
        model: the model's name on the Hub.
        revision: the commit of the model.
    """
    title = f"{model.split('/')[-1]}: ask about an image"
    header = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license="apache-2.0",
        models=[model],
    )
    texts = {
        "app.py": APP.format(model=model, revision=revision),
        "requirements.txt": "".join(f"{one}\n" for one in requires("vlkd") if ";" not in one),
        "README.md": CARD.format(header=header.to_yaml(), title=title, model=model),
        PAGE: Path(trainer.inference.__file__).with_name(PAGE).read_text(encoding="utf-8"),
    }
    return {name: text.encode() for name, text in texts.items()}
