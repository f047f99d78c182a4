"""`vlkd caption`: write a caption for each image. `vlkd ask` shares its options and its loop over the images."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_vlkd.image_loading_vlkd import read_image
from trainer.cli.devices import add_device_options, read_device_options
from trainer.cli.images import find_images, report_skipped, warn
from trainer.cli.outputs import METADATA, Output, open_outputs
from trainer.cli.parser import utf8
from trainer.image_loader import load_images, min_jpeg_side
from trainer.inference.backends import load_for_inference
from trainer.inference.captioner import Captioner

MANY = 32  # a terminal shows a progress bar for at least this many images


def add_command(commands: Any) -> None:
    parser = commands.add_parser("caption")
    add_options(parser, nargs="*")
    parser.add_argument("--sidecar", action="store_true", help="write the caption of photo.jpg to photo.txt beside it")
    parser.add_argument(
        "--metadata", action="store_true", help=f"write {METADATA} into each folder, which makes it a dataset"
    )
    parser.add_argument("--prompt", type=utf8, help="text before each caption, or around its place, <mask>")
    dataset = parser.add_argument_group("datasets, in place of images", "--output names a folder of Parquet files.")
    dataset.add_argument("--dataset", metavar="NAME", help="folder, Hub name or module:function, as for `vlkd train`")
    dataset.add_argument("--dataset_kwargs", default="{}", metavar="JSON", help="arguments of `load_dataset`")
    dataset.add_argument("--split", default="train", help="split of the dataset")
    dataset.add_argument("--image_column", default="image", help="column of the images")
    dataset.add_argument("--key_columns", nargs="+", metavar="COLUMN", help="columns copied beside the captions")
    dataset.add_argument("--push_to_hub", metavar="USER/NAME", help="upload the captions to this dataset repository")
    parser.set_defaults(run=run, question=None)


def run(args: argparse.Namespace) -> int:
    """Caption images or a dataset.

    Raises:
        ValueError: there are both or neither, or an option is wrong.
    """
    if args.dataset is None:
        if args.push_to_hub is not None or args.key_columns is not None:
            raise ValueError("--push_to_hub and --key_columns need --dataset.")
        return describe_images(args)
    from trainer.cli.caption_dataset import caption_dataset  # needs the extra "train"

    if args.images or args.output is None:
        raise ValueError("--dataset needs --output FOLDER, and no images.")
    if args.sidecar or args.metadata or args.json or args.recursive or args.skip_existing:
        raise ValueError(
            "--dataset has no --sidecar, --metadata, --json, --recursive or --skip_existing; a run that was stopped "
            "continues by itself."
        )
    check_numbers(args)
    return caption_dataset(args)


def add_options(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """Add the options of `vlkd caption` that `vlkd ask` also has."""
    parser.add_argument(
        "images", nargs=nargs, metavar="IMAGE", help="file, folder, URL or pattern like 'photos/*.jpg'"
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--recursive", action="store_true", help="search the folders inside folders too")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--output", metavar="FILE", help="write to a .jsonl or .csv file in place of the terminal")
    parser.add_argument("--skip_existing", action="store_true", help="continue: leave out images that have their text")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument("--max_new_tokens", type=int, default=40, help="maximum number of generated tokens")
    parser.add_argument("--num_beams", type=int, default=1, help="number of beams; 1 is greedy decoding")
    add_device_options(parser)


def describe_images(args: argparse.Namespace) -> int:
    """Write the caption of each image, or the answer to `args.question`. Report unreadable images on stderr.

    Returns:
        0, or 1 if an image could not be read or a name matched no image.

    Raises:
        ValueError: there are no images, a file must not be overwritten, or the model cannot be loaded.
    """
    check_numbers(args)
    found = {name: find_images(name, args.recursive) for name in args.images}
    images = {name: files for name, (files, _) in found.items()}
    paths = [path for name in args.images for path in images[name]]
    if not paths:
        report_skipped({name: files for name, files in found.items() if files[1]})
        names = f" found in {', '.join(args.images)}" if args.images else ""
        raise ValueError(f"no images{names}; give files, folders or patterns of images.")
    outputs = open_outputs(args, images)
    pending = [path for path in paths if not all(output.has(path) for output in outputs)]
    done = describe(pending, outputs, args) if pending else 0
    if args.skip_existing:
        warn("skip_existing", f"{len(paths) - len(pending):,} of {len(paths):,} images had their text")
    return 1 if report_skipped(found) or done < len(pending) else 0


def check_numbers(args: argparse.Namespace) -> None:
    for name in ("max_new_tokens", "num_beams"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)} must be 1 or more.")


def describe(paths: list[Path | str], outputs: list[Output], args: argparse.Namespace) -> int:
    """Write the texts of these images, and return the number of images that could be read."""
    captioner, done = load_captioner(args), 0
    read = partial(read_image, min_side=min_jpeg_side(captioner.processor))
    with tqdm(total=len(paths), unit="image", disable=None if len(paths) >= MANY else True) as progress:
        for batch in load_images(read, paths, captioner.processor, captioner.batch_size):
            for number, error in batch.errors.items():
                warn(paths[number], error.cause)
            if batch.numbers:
                found = [paths[number] for number in batch.numbers]
                texts = list(zip(found, captioner(batch.pixel_values), strict=True))
                for output in outputs:
                    output.write(texts)
            done += len(batch.numbers)
            progress.update(len(batch.numbers) + len(batch.errors))
    return done


def load_captioner(args: argparse.Namespace) -> Captioner:
    """The model that the options name, with their prompt and decoding.

    Raises:
        ValueError: the model cannot be loaded, or the prompt has two masks.
    """
    model, processor = load_for_inference(args.model, "--model", *read_device_options(args), args.backend)
    is_answer = args.question is not None
    prompt = processor.build_vqa_prompt(args.question) if is_answer else processor.build_prompt(args.prompt)
    return Captioner(model, processor, prompt, is_answer, args.max_new_tokens, args.num_beams)
