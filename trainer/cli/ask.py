"""`vlkd ask`: answer a question about each image."""

import argparse
import os
from typing import Any

from trainer.cli.caption import add_options, describe_images
from trainer.cli.images import names_image
from trainer.cli.parser import utf8


def add_command(commands: Any) -> None:
    parser = commands.add_parser("ask")
    add_options(parser)
    parser.add_argument("question", type=utf8, help="the question about every image, after the images")
    parser.set_defaults(run=run, sidecar=False, metadata=False)


def run(args: argparse.Namespace) -> int:
    """Print one answer per image, as `vlkd caption` prints captions.

    Raises:
        ValueError: the question is missing, there are no images, or the model cannot be loaded.
    """
    check_question(args.question)
    return describe_images(args)


def check_question(question: str) -> None:
    """Raise a ValueError if the question is empty, or is an image instead."""
    if not question.strip():
        raise ValueError("the question is empty; write it after the images.")
    if os.path.exists(question) or names_image(question):
        raise ValueError(
            f"the last argument must be the question, but '{question}' is a file, folder or URL. Put the question "
            "last: vlkd ask IMAGE 'what is in the picture?' --model DIR."
        )
