"""`vlkd caption` and `vlkd ask`: a trained model, and images by name, folder, pattern or URL."""

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
from trainer.data.rows import IMAGE_EXTENSIONS
from trainer.models import load_vlkd

# Photographs that Pillow does not read, or only with a plugin or since a newer version.
UNREADABLE = set(
    ".avif .heic .heif .hif .jxl .3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
    ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)
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
    """Write one line per image to stdout and report on stderr what could not be read.

    Returns:
        0, or 1 if an image could not be read or a name stands for no image.

    Raises:
        ValueError: there is no image at all, no question, or no model.
    """
    check_question(args.question)
    for name in ("max_new_tokens", "num_beams"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be 1 or more.")
    found = {name: find_images(name) for name in args.images}
    paths = [path for name in args.images for path in found[name][0]]
    if not paths:
        report_skipped({name: files for name, files in found.items() if files[1]})
        raise ValueError(f"no image is found in {', '.join(args.images)}: name files, folders or patterns of images.")
    done = 0
    model, processor = load_vlkd(args.model, "--model", *read_device_options(args))
    model.eval()
    with tqdm(total=len(paths), unit="image", disable=None if len(paths) >= MANY else True) as progress:
        for start in range(0, len(paths), BATCH):
            images = list(read_all(paths[start : start + BATCH]))
            texts = describe(model, processor, [image for _, image in images], args) if images else []
            for (path, _), text in zip(images, texts, strict=True):
                tqdm.write(as_line(path, text, args))
            sys.stdout.flush()  # an interrupted run leaves what it has done
            done += len(images)
            progress.update(len(paths[start : start + BATCH]))
    return 1 if report_skipped(found) or done < len(paths) else 0


def check_question(question: str | None) -> None:
    """Raise a ValueError for an empty question, and for an image in the question's place."""
    if question is None:
        return
    if not question.strip():
        raise ValueError("the question is empty: write it after the images.")
    is_image = " " not in question and Path(question).suffix.lower() in {*IMAGE_EXTENSIONS, *UNREADABLE}
    if os.path.exists(question) or is_image or question.startswith(("http://", "https://")):
        raise ValueError(f"'{question}' is in the question's place, but is an image: write the question last.")


def find_images(name: str) -> tuple[list[Path | str], list[Path]]:
    """The images that a name stands for, sorted, and the other files found with them.

    A file or URL is returned as it is. Of a folder, and of the files that match a pattern, those with an image's
    extension are the images. Hidden files and folders in it are left out.
    """
    if name.startswith(("http://", "https://")):
        return [name], []
    if os.path.isdir(name):
        candidates = Path(name).iterdir()
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)], []  # a missing file is reported where it is read
    else:
        candidates = map(Path, glob.glob(name, recursive=True))
    files = sorted(file for file in candidates if not file.name.startswith(".") and not file.is_dir())
    others = [file for file in files if file.suffix.lower() not in IMAGE_EXTENSIONS]
    return [file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS], others


def report_skipped(found: dict[str, tuple[list, list[Path]]]) -> bool:
    """Report names that stand for no image and, by extension, the other files that were found with images.

    Returns:
        Whether there was a name without an image, or a photograph of a kind that Pillow does not read.
    """
    failed = False
    for name, (images, others) in found.items():
        kinds = Counter(file.suffix.lower() for file in others)
        photos = {kind: count for kind, count in kinds.items() if kind in UNREADABLE}
        others = {kind: count for kind, count in kinds.items() if kind not in UNREADABLE}
        if photos:
            plugin = "install pillow-heif to read HEIC, " if photos.keys() & {".heic", ".heif", ".hif"} else ""
            reason = f"skipped {_counted(photos)}, which Pillow does not read: {plugin}convert them to JPEG or PNG"
            complain(name, reason)
        if others:
            complain(name, f"skipped {_counted(others)}, not known as images")
        if not kinds and not images:
            complain(name, "no image is found there")
        failed |= bool(photos or not images)
    return failed


def _counted(kinds: dict[str, int]) -> str:
    """Such as "1 .cr2, 2 .heic"."""
    return ", ".join(f"{count} {kind or 'without an extension'}" for kind, count in sorted(kinds.items()))


def read_all(paths: list[Path | str]) -> Iterator[tuple[Path | str, Image.Image]]:
    """The images that can be read; the others are reported on stderr."""
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
    prompt = processor.build_prompt() if args.question is None else processor.build_vqa_prompt(args.question)
    inputs = processor(images=images, text=prompt).to(model.device, model.dtype)
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=args.num_beams, do_sample=False)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=args.question is not None)


def as_line(path: Path | str, text: str, args: argparse.Namespace) -> str:
    if not args.json:
        name = str(path).replace("\n", "\\n")  # one line an image
        return f"{name}\t{' '.join(text.split())}"
    asked = {} if args.question is None else {"question": args.question}
    values = {"image": str(path), **asked, "answer" if asked else "caption": text}
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the console's escapes are not JSON's
        return json.dumps(values)
    return line
