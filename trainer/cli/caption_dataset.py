"""`vlkd caption --dataset`: a caption for each row of a dataset, shard by shard, into Parquet files.

Under `torchrun`, the processes share the shards. A finished shard is one file, and is not read again.
"""

import argparse
import json
import os
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from trainer.cli.caption import load_captioner
from trainer.cli.images import warn
from trainer.data.rows import DataError, check_column, load_image
from trainer.data.sources import SHARDS, load_split, with_undecoded
from trainer.data.streaming import read_shard
from trainer.hub.repository import create_and_upload
from trainer.image_loader import load_images, min_jpeg_side
from trainer.inference.captioner import Captioner

SETTINGS = "_captions.json"  # the options of all shards of a folder; readers of Parquet folders ignore names with _
KEY = "__key__"  # names a row of a tar file
ROWS = 512  # read at once


def caption_dataset(args: argparse.Namespace) -> int:
    """Caption the shards of this process that are not in the output folder, and upload them if asked to.

    Returns:
        0, or 1 if a shard could not be read, or an image: its caption is null, and its column `error` has the reason.

    Raises:
        ValueError: an option is wrong, the dataset or the model cannot be loaded, or the folder is of other options.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    source = open_shards(args)
    keys = args.key_columns if args.key_columns is not None else [KEY] * (KEY in source.column_names)
    check_columns(args, keys, source.column_names)
    source = with_undecoded(source.select_columns([args.image_column, *keys]), args.image_column)
    folder, shards = Path(args.output), source.num_shards
    check_settings(folder, args, shards)
    files = {
        number: folder / f"captions-{number:05d}-of-{shards:05d}.parquet" for number in range(rank, shards, world_size)
    }
    if args.push_to_hub:
        validate_repo_id(args.push_to_hub)
    if args.overwrite:
        for file in folder.glob("captions-*.parquet"):  # of this process, or of a run with other shards
            if file in files.values() or not file.stem.endswith(f"-of-{shards:05d}"):
                file.unlink(missing_ok=True)
    unreadable = 0
    pending = {number: file for number, file in files.items() if not file.exists()}
    if pending:
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
        captioner = load_captioner(args)
        with tqdm(unit="image", disable=rank > 0) as progress:
            for number, file in pending.items():
                progress.set_description(f"shard {number + 1} of {shards}")
                try:
                    unreadable += caption_shard(captioner, source, number, file, args.image_column, keys, progress)
                except DataError as error:  # the other shards are captioned
                    warn(file.name, error)
                    unreadable += 1
    if args.push_to_hub and files:
        uploads = {file.name: file for file in (folder / SETTINGS, *files.values()) if file.exists()}
        message = f"Captions by {args.model}"
        print(create_and_upload(uploads, args.push_to_hub, repo_type="dataset", message=message).commit_url)
    return 1 if unreadable else 0


def open_shards(args: argparse.Namespace) -> IterableDataset:
    """The dataset as a stream, whose shards are its files or parts of it.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        options = json.loads(args.dataset_kwargs)
        if not isinstance(options, dict):
            raise ValueError("it is no object")
    except ValueError as error:
        raise ValueError(f"--dataset_kwargs {args.dataset_kwargs} is not a JSON object: {error}.") from error
    source = load_split(args.dataset, args.split, streaming=True, **options)
    if (
        isinstance(source, IterableDataset) and source.info.builder_name == "imagefolder"
    ):  # with a shard for each image
        source = load_split(args.dataset, args.split, streaming=False, **options)
    if isinstance(source, Dataset):
        if not len(source):
            raise ValueError(f"split '{args.split}' of dataset '{args.dataset}' has no rows.")
        source = source.to_iterable_dataset(num_shards=max(1, min(SHARDS, len(source))))
    return source


def check_columns(args: argparse.Namespace, keys: list[str], columns: list[str]) -> None:
    """Raise a ValueError if the dataset lacks a column, or if a key has the name of a column of the captions."""
    for column, option in [(args.image_column, "--image_column"), *((key, "--key_columns") for key in keys)]:
        check_column(column, columns, f"dataset '{args.dataset}'", option)
    if taken := {"shard", "row", "caption", "error", args.image_column}.intersection(keys):
        raise ValueError(f"--key_columns {min(taken)}: the captions have a column of this name. Rename the dataset's.")
    if len(set(keys)) < len(keys):
        raise ValueError(f"--key_columns {' '.join(keys)} names a column twice.")


def check_settings(folder: Path, args: argparse.Namespace, shards: int) -> None:
    """Write the options into the output folder, or compare them with those in it.

    Raises:
        ValueError: the folder is of other options, or holds something else.
    """
    names = ("dataset", "dataset_kwargs", "split", "image_column", "key_columns", "model", "prompt", "max_new_tokens")
    settings = {name: getattr(args, name) for name in (*names, "num_beams")} | {"shards": shards}
    file = folder / SETTINGS
    if file.is_file() and not args.overwrite:
        try:
            saved = dict(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} cannot be read: {error}. Give another --output, or --overwrite.") from error
        other = [name for name, value in settings.items() if saved.get(name) != value]
        if other:
            raise ValueError(
                f"--output {folder} has captions with other options ({', '.join(other)}); see {file}. Give another "
                "folder, or --overwrite."
            )
        return
    others = [other for other in folder.glob("*") if other != file and other.suffix != ".part"]
    if others and not args.overwrite:
        raise ValueError(f"--output {folder} is not empty, and has no {SETTINGS}. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{SETTINGS}.{os.getpid()}.part")
    part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(part, file)


def caption_shard(
    captioner: Captioner,
    source: IterableDataset,
    number: int,
    file: Path,
    image_column: str,
    keys: list[str],
    progress: tqdm,
) -> int:
    """Write the Parquet file of a shard, and return the number of its rows without a readable image."""
    rows = read_shard(source, number)
    records, unreadable = [], 0
    while chunk := list(islice(rows, ROWS)):
        for row in _captioned(captioner, chunk, len(records), number, image_column, keys):
            records.append(row)
            if row["error"]:
                unreadable += 1
                warn(f"{file.name}, row {row['row']}", row["error"])
            progress.update()
    strings = dict.fromkeys([*keys, "caption", "error"], pa.string())
    schema = pa.schema({"shard": pa.int64(), "row": pa.int64(), **strings})
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    pq.write_table(pa.Table.from_pylist(records, schema), part)
    os.replace(part, file)
    return unreadable


def _captioned(
    captioner: Captioner, rows: list[dict[str, Any]], first: int, shard: int, image_column: str, keys: list[str]
) -> Iterator[dict[str, Any]]:
    """The records of some rows, of which the first has the number `first` in its shard."""
    read = partial(load_image, name="", column=image_column, min_side=min_jpeg_side(captioner.processor))
    images = [row[image_column] for row in rows]
    for batch in load_images(read, images, captioner.processor, captioner.batch_size):
        captions = dict(zip(batch.numbers, captioner(batch.pixel_values) if batch.numbers else [], strict=True))
        for number in sorted([*captions, *batch.errors]):
            error = batch.errors[number].cause if number in batch.errors else None
            yield {
                "shard": shard,
                "row": first + number,
                **{key: _as_text(rows[number][key]) for key in keys},
                "caption": captions.get(number),
                "error": error,
            }


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda part: _as_text(part) or "")
