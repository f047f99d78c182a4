"""`vlkd caption` and `vlkd ask`: a trained model, and images by name, folder, pattern or URL."""

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.loading import add_device_options, load_vlkd, read_device_options

BATCH = 16  # images
MANY = 2 * BATCH  # from here on, a terminal shows a progress bar; elsewhere the lines tell


def add_command(commands: Any) -> None:
    caption = commands.add_parser("caption", help="write a caption for each image")
    caption.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, URLs, or patterns such as 'photos/*.jpg'"
    )
    caption.set_defaults(question=None)
    ask = commands.add_parser("ask", help="answer a question about each image")
    ask.add_argument("images", nargs="+", metavar="IMAGE", help="as in `vlkd caption`; the question comes last")
    ask.add_argument("question", help="what to ask of every image")
    for parser in (caption, ask):
        parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        parser.add_argument("--max_new_tokens", type=int, default=40, help="upper bound of what is written, in tokens")
        parser.add_argument("--num_beams", type=int, default=1, help="1 is greedy")
        add_device_options(parser)
        parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write one line an image to stdout, name on stderr what gives none; 1 if there was such, else 0.

    Raises:
        ValueError: there is no image at all, no question, or no model.
    """
    check_question(args.question)
    found = [(name, find_images(name)) for name in args.images]
    paths = [path for _, files in found for path in files]
    if not paths:
        raise ValueError(f"no image is found in {', '.join(args.images)}: name files, folders or patterns of images.")
    empty = [name for name, files in found if not files]
    for name in empty:
        complain(name, "no image is found there")
    done = 0
    model, processor = load_vlkd(args.model, "--model", *read_device_options(args))
    model.eval()
    with tqdm(total=len(paths), unit="image", disable=None if len(paths) >= MANY else True) as progress:
        for start in range(0, len(paths), BATCH):
            images = list(read_all(paths[start : start + BATCH]))
            texts = describe(model, processor, [image for _, image in images], args) if images else []
            for (path, _), text in zip(images, texts, strict=True):
                tqdm.write(as_line(path, text, args))
            done += len(images)
            progress.update(len(paths[start : start + BATCH]))
    return 1 if empty or done < len(paths) else 0


def check_question(question: str | None) -> None:
    """Raise a ValueError for an empty question, and for an image where the question should stand."""
    if question is not None and not question.strip():
        raise ValueError("the question is empty: write it after the images.")
    if question is not None and os.path.exists(question):
        raise ValueError(f"'{question}' stands where the question belongs, but is a file: write the question last.")


def find_images(name: str) -> list[Path | str]:
    """A file or URL as named; of a folder, or what a pattern finds, the files with an image's extension, sorted."""
    if name.startswith(("http://", "https://")):
        return [name]
    if os.path.isdir(name):
        candidates = Path(name).iterdir()
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)]  # a missing file is reported where it is read
    else:
        candidates = map(Path, glob.glob(name, recursive=True))
    extensions = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(file for file in candidates if file.suffix.lower() in extensions)


def read_all(paths: list[Path | str]) -> Iterator[tuple[Path | str, Image.Image]]:
    """The images that can be read; the others are named on stderr."""
    for path in paths:
        try:
            yield path, read_image(path)
        except ValueError as error:
            complain(path, error.__cause__ or error)


def complain(name: Path | str, reason: object) -> None:
    tqdm.write(f"vlkd: {name}: {reason}", file=sys.stderr)


@torch.no_grad()
def describe(
    model: VLKDForConditionalGeneration, processor: VLKDProcessor, images: list[Image.Image], args: argparse.Namespace
) -> list[str]:
    """What the model writes in the place of the prompt's `<mask>`, for each image; of an answer the first sentence."""
    prompt = processor.prompt() if args.question is None else processor.question(args.question)
    inputs = processor(images=images, text=prompt).to(model.device, model.dtype)
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=args.num_beams, do_sample=False)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=args.question is not None)


def as_line(path: Path | str, text: str, args: argparse.Namespace) -> str:
    if not args.json:
        return f"{path}\t{' '.join(text.split())}"
    asked = {} if args.question is None else {"question": args.question}
    return json.dumps({"image": str(path), **asked, "answer" if asked else "caption": text}, ensure_ascii=False)
