"""`vlkd caption`: write a caption for each image. `vlkd ask` shares its options and its loop over the images."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.backends import load_for_inference
from trainer.cli.devices import add_device_options, read_device_options
from trainer.cli.images import find_images, report_skipped, warn
from trainer.image_loader import load_images, min_jpeg_side

MAX_BATCH = 64  # images
CACHE_BYTES = 256 * 2**20  # for the keys and values of a batch, at most
MANY = 32  # a terminal shows a progress bar for at least this many images


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
    model, processor = load_for_inference(args.model, "--model", *read_device_options(args), args.backend)
    model.eval()
    read = partial(read_image, min_side=min_jpeg_side(processor))
    with tqdm(total=len(paths), unit="image", disable=None if len(paths) >= MANY else True) as progress:
        for batch in load_images(read, paths, processor, batch_size(model, args.max_new_tokens, args.num_beams)):
            for number, error in batch.errors.items():
                warn(paths[number], error.cause)
            texts = generate(model, processor, batch.pixel_values, args) if batch.numbers else []
            for number, text in zip(batch.numbers, texts, strict=True):
                tqdm.write(as_line(paths[number], text, args))
            sys.stdout.flush()  # an interrupted run keeps the finished lines
            done += len(batch.numbers)
            progress.update(len(batch.numbers) + len(batch.errors))
    return 1 if report_skipped(found) or done < len(paths) else 0


def batch_size(model: VLKDForConditionalGeneration, max_new_tokens: int, num_beams: int) -> int:
    """As many images as `CACHE_BYTES` hold keys and values of, `MAX_BATCH` at most."""
    text, images = model.config.text_config, (1 + model.config.num_patches) * model.config.image_token_expansion
    tokens = images + max_new_tokens
    image_bytes = 2 * text.decoder_layers * text.d_model * tokens * num_beams * model.dtype.itemsize
    return max(1, min(MAX_BATCH, CACHE_BYTES // image_bytes))


@torch.no_grad()
def generate(
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    pixel_values: torch.FloatTensor,
    args: argparse.Namespace,
) -> list[str]:
    """A caption for each image; with a question, the first sentence of the answer.

    If a GPU's memory is too small for the images, they are done in two halves.
    """
    prompt = processor.build_prompt() if args.question is None else processor.build_vqa_prompt(args.question)
    inputs = processor.encode_prompts(prompt, len(pixel_values)).to(model.device)
    options = {"max_new_tokens": args.max_new_tokens, "num_beams": args.num_beams, "do_sample": False}
    try:
        ids = model.generate(**inputs, pixel_values=pixel_values.to(model.device, model.dtype), **options)
        return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=args.question is not None)
    except torch.OutOfMemoryError:
        if len(pixel_values) == 1:
            raise
    # After the `except`, so that the failed call's tensors are freed.
    return [text for half in pixel_values.chunk(2) for text in generate(model, processor, half, args)]


def as_line(path: Path | str, text: str, args: argparse.Namespace) -> str:
    """One line of output: the path and the text, or a JSON object."""
    if not args.json:
        name = str(path).replace("\n", "\\n")
        return f"{name}\t{' '.join(text.split())}"
    if args.question is None:
        values = {"image": str(path), "caption": text}
    else:
        values = {"image": str(path), "question": args.question, "answer": text}
    return as_json(values)


def as_json(values: dict[str, Any]) -> str:
    """A JSON object on one line, which stdout can encode."""
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the escapes of our error handler are not valid JSON
        return json.dumps(values)
    return line
