"""`vlkd cache`: fill the feature cache before training."""

import argparse
from typing import Any

from trainer.build import cached_kinds, load_model, load_rows
from trainer.cache.columns import cache_folder
from trainer.cli.train import ARGUMENTS, read_arguments


def add_command(commands: Any) -> None:
    parser = commands.add_parser("cache", dataclass_types=ARGUMENTS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fill the feature cache of `vlkd train` with the same options. Existing files are kept.

    Raises:
        ValueError: an option is invalid, the data is a stream, or there is not enough disk space.
    """
    model_args, data_args, training_args = read_arguments(args)
    if data_args.streaming:
        raise ValueError("streaming has no feature cache; set streaming to false, or run `vlkd train` directly.")
    model, processor = load_model(model_args, training_args.clip, training_args.seed)
    kinds = cached_kinds(data_args, training_args, model, processor)
    for split in filter(None, (data_args.dataset_train_split, data_args.dataset_test_split)):
        rows = load_rows(data_args, training_args, split, processor, kinds)
        print(f"{split}: {len(rows):,} rows are cached in {cache_folder(data_args.cache_dir)}")
    return 0
