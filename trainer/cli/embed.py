"""`vlkd embed`: make an index of images, which `vlkd search` reads."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from trainer.cli.caption import MANY
from trainer.cli.devices import add_device_options, read_device_options
from trainer.cli.images import find_images, report_skipped, warn
from trainer.inference.backends import checkpoint_digest, load_for_inference
from trainer.inference.search import embed_images, new_index, write_index

NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python represents other bytes of a file name


def add_command(commands: Any) -> None:
    parser = commands.add_parser("embed")
    parser.add_argument("images", nargs="+", metavar="FOLDER", help="folder, file, URL or pattern like 'photos/*.jpg'")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--output", required=True, metavar="INDEX", help="folder to write, for vlkd search --index")
    parser.add_argument("--recursive", action="store_true", help="also embed the images in subfolders")
    parser.add_argument("--overwrite", action="store_true", help="replace an index that exists")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the index, and report unreadable images on stderr.

    Returns:
        0, or 1 if an image could not be read or a name matched no image.

    Raises:
        ValueError: there are no images, the model cannot be loaded, or the output exists.
    """
    with new_index(Path(args.output), args.overwrite) as folder:
        found = {name: find_images(name, args.recursive) for name in args.images}
        paths = {_absolute(path): path for images, _ in found.values() for path in images}
        unusual = [path for path in paths if NOT_UTF8.search(path)]
        for path in unusual:
            warn(paths.pop(path), "its name is not UTF-8, so that the index cannot store it; rename the file")
        if not paths:
            report_skipped({name: files for name, files in found.items() if files[1]})
            raise ValueError(
                f"no images found in {', '.join(args.images)}; give folders, files or patterns of images."
            )
        digest = checkpoint_digest(args.model, "--model")
        done, embeddings = _embed(args, paths)
        if not done:
            raise ValueError(f"none of the {len(paths)} images can be read.")
        model = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        write_index(folder, done, embeddings, model, digest)
    print(f"{len(done)} images in {args.output}")
    return 1 if report_skipped(found) or unusual or len(done) < len(paths) else 0


def _absolute(path: Path | str) -> str:
    """A path that is valid in every working directory; a URL as it is."""
    return path if isinstance(path, str) else os.path.abspath(path)


def _embed(args: argparse.Namespace, paths: dict[str, Path | str]) -> tuple[list[str], list[np.ndarray]]:
    """The keys of `paths` whose images can be read, and arrays with their embeddings."""
    names, sources = [*paths], [*paths.values()]
    done, embeddings = [], []
    model, processor = load_for_inference(args.model, "--model", *read_device_options(args), args.backend)
    model.eval()
    with tqdm(total=len(names), unit="image", disable=None if len(names) >= MANY else True) as progress:
        for batch, embeds in embed_images(model, processor, sources):
            for number, error in batch.errors.items():
                warn(sources[number], error.cause)
            done += [names[number] for number in batch.numbers]
            embeddings.append(embeds)
            progress.update(len(embeds) + len(batch.errors))
    return done, embeddings
