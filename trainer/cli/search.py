"""`vlkd search`: find the images of an index that match a text or an image."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from modeling_vlkd import VLKDProcessor
from trainer.cli.devices import add_device_options, read_device_options
from trainer.cli.images import names_image, warn
from trainer.cli.outputs import as_json
from trainer.cli.parser import utf8
from trainer.inference.backends import checkpoint_digest, load_for_inference
from trainer.inference.contact_sheet import as_source, contact_sheet
from trainer.inference.search import embed_images, embed_text, load_index, nearest


def add_command(commands: Any) -> None:
    parser = commands.add_parser("search")
    parser.add_argument("query", nargs="?", type=utf8, help="a text, such as 'a dog on a beach'")
    parser.add_argument("--image", metavar="FILE", help="find images like this file or URL, instead of a text")
    parser.add_argument("--index", required=True, metavar="DIR", help="folder that vlkd embed has written")
    parser.add_argument("--model", metavar="DIR", help="the model of the index, if it has moved")
    parser.add_argument("--top_k", type=int, default=10, help="number of images")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--html", metavar="FILE", help="also write the images to this page")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --html if it exists")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the score and the path of each image, best first.

    Returns:
        0, or 1 if an image on the page could not be read.

    Raises:
        ValueError: there is no query, the index or the model cannot be read, or the model did not make the index.
    """
    _check(args)
    dataset, made_by, digest = load_index(Path(args.index))
    option = "--model" if args.model else f"--index {args.index}, whose model can be given with --model"
    args.model = args.model or made_by
    if checkpoint_digest(args.model, option) != digest:
        raise ValueError(
            f"'{args.model}' has other files than the model that made --index {args.index} ('{made_by}'), so that "
            "their embeddings cannot be compared. Give that model, or run `vlkd embed ... --overwrite` with the new "
            "one."
        )
    model, processor = load_for_inference(args.model, option, *read_device_options(args), args.backend)
    results = nearest(dataset, _embed_query(model.eval(), processor, args), args.top_k)
    for path, score in results:
        values = {"image": path, "score": score}
        print(as_json(values, sys.stdout.encoding) if args.json else f"{score:.4f}\t{path}".replace("\n", "\\n"))
    if not args.html:
        return 0
    title = f"“{args.query}”" if args.image is None else f"Images like {args.image}"
    page, errors = contact_sheet(title, results, len(dataset), args.image or "")
    for path, error in errors.items():
        warn(path, error)
    _write(Path(args.html), page)
    return 1 if errors else 0


def _check(args: argparse.Namespace) -> None:
    if (args.query is None) == (args.image is None):
        raise ValueError("give a text, or an image with --image FILE; not both.")
    if args.query is not None and not args.query.strip():
        raise ValueError("the text to search for is empty.")
    if args.query is not None and (os.path.isfile(args.query) or names_image(args.query)):
        raise ValueError(f"'{args.query}' is an image; to find images like it, write --image '{args.query}'.")
    if args.top_k < 1:
        raise ValueError(f"--top_k {args.top_k} must be 1 or more.")
    if args.html and Path(args.html).exists() and not args.overwrite:
        raise ValueError(f"--html {args.html} exists; give a new name, or replace it with --overwrite.")


def _embed_query(model: PreTrainedModel, processor: VLKDProcessor, args: argparse.Namespace) -> np.ndarray:
    """The embedding (d_j,) of the text or the image."""
    if args.image is None:
        return embed_text(model, processor, args.query)
    ((batch, embeds),) = embed_images(model, processor, [as_source(args.image)])
    if batch.errors:
        raise ValueError(f"--image {args.image}: {batch.errors[0].cause}")
    return embeds[0]


def _write(file: Path, page: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(page, encoding="utf-8", errors="replace")  # a file name may hold bytes that are not UTF-8
    os.replace(temporary, file)
