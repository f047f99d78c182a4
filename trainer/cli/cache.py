"""`vlkd cache`: what CLIP says of all images and captions, computed before training."""

import argparse
from typing import Any

from trainer.build import check_image_features, load_model, load_rows
from trainer.cache.columns import cache_folder
from trainer.cli.train import ARGUMENTS, read_arguments
from trainer.models import load_teacher, teacher_name


def add_command(commands: Any) -> None:
    parser = commands.add_parser("cache", dataclass_types=ARGUMENTS, help="fill the feature cache of a training run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute what `vlkd train` with the same options would; it then only reads. What is there stays as it is.

    Raises:
        ValueError: as `vlkd train`; or the data is a stream, or the disk is too small.
    """
    model_args, data_args, training_args = read_arguments(args)
    if data_args.streaming:
        raise ValueError(
            "streaming is on: of a stream nothing is cached, CLIP embeds its captions as they come. Set streaming to "
            "false, or train without a cache."
        )
    model, processor = load_model(model_args, training_args.clip, training_args.seed)
    teacher, tokenizer = load_teacher(teacher_name(training_args.clip, model.config), model)
    check_image_features(data_args, model)
    model, teacher = model.to(training_args.device), teacher.to(training_args.device)
    kept = (
        "captions"
        if data_args.cache_image_features == "none"
        else f"captions and images ({data_args.cache_image_features})"
    )
    for split in filter(None, (data_args.dataset_train_split, data_args.dataset_test_split)):
        rows = load_rows(data_args, training_args, split, model, processor, teacher, tokenizer)
        print(f"{split}: {kept} of {len(rows):,} rows are in {cache_folder(data_args.cache_dir)}")
    return 0
