"""`vlkd caption` and `vlkd ask`: captions of images, and answers to a question about them."""

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.cli.devices import add_device_options, read_device_options
from trainer.data.paths import IMAGE_EXTENSIONS
from trainer.models import load_vlkd

BATCH = 16  # images per forward pass


def add_command(commands: Any) -> None:
    caption, ask = commands.add_parser("caption"), commands.add_parser("ask")
    for parser in (caption, ask):
        parser.add_argument(
            "images", nargs="+", metavar="IMAGE", help="file, folder, URL or pattern like 'photos/*.jpg'"
        )
        parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
        parser.add_argument("--json", action="store_true", help="print one JSON object per line")
        parser.add_argument("--max_new_tokens", type=int, default=40, help="maximum number of generated tokens")
        parser.add_argument("--num_beams", type=int, default=1, help="number of beams; 1 is greedy decoding")
        add_device_options(parser)
        parser.set_defaults(run=run, question=None)
    ask.add_argument("question", help="the question about every image, after the images")


def run(args: argparse.Namespace) -> int:
    """Print one line per image. Report images that cannot be read on stderr.

    Returns:
        0, or 1 if an image cannot be read or a name matches no image.

    Raises:
        ValueError: there are no images, the question is missing, or the model cannot be loaded.
    """
    check_question(args.question)
    found = {name: find_images(name) for name in args.images}
    paths = [path for name in args.images for path in found[name][0]]
    if not paths:
        report_skipped({name: files for name, files in found.items() if files[1]})
        raise ValueError(f"no images found in {', '.join(args.images)}; give files, folders or patterns of images.")
    done = 0
    model, processor = load_vlkd(args.model, "--model", *read_device_options(args))
    model.eval()
    with tqdm(total=len(paths), unit="image", disable=None) as progress:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            images = list(read_all(batch))
            texts = generate(model, processor, [image for _, image in images], args) if images else []
            for (path, _), text in zip(images, texts, strict=True):
                tqdm.write(as_line(path, text, args))
            sys.stdout.flush()  # an interrupted run keeps the finished lines
            done += len(images)
            progress.update(len(batch))
    return 1 if report_skipped(found) or done < len(paths) else 0


def check_question(question: str | None) -> None:
    """Raise a ValueError if the question is empty, or is a file: the question was forgotten."""
    if question is None:
        return
    if not question.strip():
        raise ValueError("the question is empty; write it after the images.")
    if os.path.exists(question):
        raise ValueError(f"the last argument must be the question, but '{question}' is a file.")


def find_images(name: str) -> tuple[list[Path | str], list[Path]]:
    """The images that a name refers to, sorted, and the other files in that folder or pattern.

    A file or URL is returned unchanged. Files of a folder or pattern are images if they have an extension that Pillow
    reads. Hidden files and subfolders are ignored.
    """
    if name.startswith(("http://", "https://")):
        return [name], []
    if os.path.isdir(name):
        candidates = Path(name).iterdir()
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)], []  # `read_all` reports a missing file
    else:
        candidates = map(Path, glob.glob(name, recursive=True))
    files = sorted(file for file in candidates if not file.name.startswith(".") and not file.is_dir())
    others = [file for file in files if file.suffix.lower() not in IMAGE_EXTENSIONS]
    return [file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS], others


def report_skipped(found: dict[str, tuple[list, list[Path]]]) -> bool:
    """Report names without images, and the number of other files by extension; return whether a name has no image."""
    for name, (images, others) in found.items():
        extensions = Counter(file.suffix.lower() or "without extension" for file in others)
        if extensions:
            counted = ", ".join(f"{count} {extension}" for extension, count in sorted(extensions.items()))
            plugin = "; install pillow-heif to read HEIC" if ".heic" in extensions else ""
            warn(name, f"skipped {counted}: Pillow does not read them{plugin}")
        elif not images:
            warn(name, "no images found")
    return not all(images for images, _ in found.values())


def read_all(paths: list[Path | str]) -> Iterator[tuple[Path | str, Image.Image]]:
    """Yield each image that can be read, after its path. Report the others on stderr."""
    for path in paths:
        try:
            yield path, read_image(path)
        except ValueError as error:
            warn(path, error.__cause__ or error)


def warn(name: Path | str, reason: object) -> None:
    tqdm.write(f"vlkd: {name}: {reason}", file=sys.stderr)


@torch.no_grad()
def generate(
    model: VLKDForConditionalGeneration, processor: VLKDProcessor, images: list[Image.Image], args: argparse.Namespace
) -> list[str]:
    """A caption for each image, or the first sentence of the answer to the question."""
    prompt = processor.build_prompt() if args.question is None else processor.build_vqa_prompt(args.question)
    inputs = processor(images=images, text=prompt).to(model.device, model.dtype)
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=args.num_beams, do_sample=False)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=args.question is not None)


def as_line(path: Path | str, text: str, args: argparse.Namespace) -> str:
    """One line of output: the path and the text, or an ASCII JSON object."""
    if not args.json:
        name = str(path).replace("\n", "\\n")
        return f"{name}\t{' '.join(text.split())}"
    result = {"caption": text} if args.question is None else {"question": args.question, "answer": text}
    return json.dumps({"image": str(path)} | result)
