"""`vlkd caption` and `vlkd ask`: a trained model, and images by name, folder or pattern."""

import argparse
import glob
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.processing_vlkd import read_image

BATCH = 16  # images
MANY = 2 * BATCH  # from here on, progress is shown


def add_command(commands: Any) -> None:
    caption = commands.add_parser("caption", help="write a caption for each image")
    caption.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders, or patterns such as 'photos/*.jpg'"
    )
    ask = commands.add_parser("ask", help="answer a question about each image")
    ask.add_argument("images", nargs="+", metavar="IMAGE", help="as in `vlkd caption`; the question comes last")
    ask.add_argument("question", help="what to ask of every image")
    for parser in (caption, ask):
        parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
        parser.add_argument("--json", action="store_true", help="one JSON object a line")
        parser.add_argument("--max_new_tokens", type=int, default=40, help="upper bound of what is written, in tokens")
        parser.add_argument("--num_beams", type=int, default=1, help="1 is greedy")
        parser.set_defaults(run=run, question=None)


def run(args: argparse.Namespace) -> int:
    """Write one line an image to stdout, name every unreadable one on stderr; 1 if there was one, else 0."""
    model, processor = load(args.model)
    prompt = processor.prompt() if args.question is None else processor.question(args.question)
    paths = list(find_images(args.images))
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": False}
    failed = 0
    with tqdm(total=len(paths), unit="image", disable=len(paths) < MANY) as progress:
        for batch in batches(paths):
            images = dict(read_all(batch))
            failed += len(batch) - len(images)
            if images:
                texts = describe(model, processor, list(images.values()), prompt, args.question is not None, options)
                for path, text in zip(images, texts, strict=True):
                    with progress.external_write_mode():
                        print(as_line(path, text, args), flush=True)
            progress.update(len(batch))
    return 1 if failed else 0


def load(name: str) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Model and processor, on the GPU where there is one.

    Raises:
        ValueError: `name` is no VLKD checkpoint.
    """
    try:
        model = VLKDForConditionalGeneration.from_pretrained(name)
        processor = VLKDProcessor.from_pretrained(name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--model: '{name}' is no VLKD checkpoint that can be read: {reason}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def find_images(names: Iterable[str]) -> Iterator[Path]:
    """Files as they are named; of a folder, and of what a pattern finds, the files with an image's extension, sorted."""
    extensions = set(Image.registered_extensions())
    for name in names:
        path = Path(name)
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix.lower() in extensions)
        elif path.exists() or not glob.has_magic(name):
            yield path  # a missing file is reported where it is read
        else:
            found = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).suffix.lower() in extensions)
            yield from found or [path]


def batches(paths: list[Path]) -> Iterator[list[Path]]:
    rest = iter(paths)
    while batch := list(islice(rest, BATCH)):
        yield batch


def read_all(paths: list[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """The images that can be read; the others are named on stderr."""
    for path in paths:
        try:
            yield path, read_image(str(path))
        except ValueError as error:
            print(f"vlkd: {path}: {error}", file=sys.stderr, flush=True)


@torch.no_grad()
def describe(
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    images: list[Image.Image],
    prompt: str,
    is_question: bool,
    options: dict[str, Any],
) -> list[str]:
    """What the model writes in the place of the prompt's `<mask>`, for each image; of an answer the first sentence."""
    inputs = processor(images=images, text=[prompt] * len(images), return_tensors="pt").to(model.device, model.dtype)
    ids = model.generate(**inputs, **options)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=is_question)


def as_line(path: Path, text: str, args: argparse.Namespace) -> str:
    if not args.json:
        return f"{path}\t{text}"
    asked = {} if args.question is None else {"question": args.question}
    return json.dumps({"image": str(path), **asked, "answer" if asked else "caption": text}, ensure_ascii=False)
