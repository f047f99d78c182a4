"""`vlkd caption`: write a caption for each image. `vlkd ask` shares its options and its loop over the images."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.cli.devices import add_device_options, read_device_options
from trainer.cli.images import find_images, read_all, report_skipped
from trainer.models import load_vlkd

BATCH = 16  # images
MANY = 2 * BATCH  # a terminal shows a progress bar for at least this many images


def add_command(commands: Any) -> None:
    parser = commands.add_parser("caption")
    add_options(parser)
    parser.set_defaults(run=describe_images, question=None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vlkd caption`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, URL or pattern like 'photos/*.jpg'")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--max_new_tokens", type=int, default=40, help="maximum number of generated tokens")
    parser.add_argument("--num_beams", type=int, default=1, help="number of beams; 1 is greedy decoding")
    add_device_options(parser)


def describe_images(args: argparse.Namespace) -> int:
    """Print one line per image: its caption, or the answer to `args.question`. Report unreadable images on stderr.

    Returns:
        0, or 1 if an image could not be read or a name matched no image.

    Raises:
        ValueError: there are no images, or the model cannot be loaded.
    """
    for name in ("max_new_tokens", "num_beams"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be 1 or more.")
    found = {name: find_images(name) for name in args.images}
    paths = [path for name in args.images for path in found[name][0]]
    if not paths:
        report_skipped({name: files for name, files in found.items() if files[1]})
        raise ValueError(f"no images found in {', '.join(args.images)}; give files, folders or patterns of images.")
    done = 0
    model, processor = load_vlkd(args.model, "--model", *read_device_options(args))
    model.eval()
    with tqdm(total=len(paths), unit="image", disable=None if len(paths) >= MANY else True) as progress:
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


@torch.no_grad()
def generate(
    model: VLKDForConditionalGeneration, processor: VLKDProcessor, images: list[Image.Image], args: argparse.Namespace
) -> list[str]:
    """A caption for each image; with a question, the first sentence of the answer."""
    prompt = processor.build_prompt() if args.question is None else processor.build_vqa_prompt(args.question)
    inputs = processor(images=images, text=prompt).to(model.device, model.dtype)
    ids = model.generate(**inputs, max_new_tokens=args.max_new_tokens, num_beams=args.num_beams, do_sample=False)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=args.question is not None)


def as_line(path: Path | str, text: str, args: argparse.Namespace) -> str:
    """One line of output: the path and the text, or a JSON object."""
    if not args.json:
        name = str(path).replace("\n", "\\n")
        return f"{name}\t{' '.join(text.split())}"
    if args.question is None:
        values = {"image": str(path), "caption": text}
    else:
        values = {"image": str(path), "question": args.question, "answer": text}
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the escapes of our error handler are not valid JSON
        return json.dumps(values)
    return line
