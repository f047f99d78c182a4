"""`vlkd train`: train a model with options from a YAML file or flags."""

import argparse
from dataclasses import fields
from typing import Any

import torch

from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.build import build_trainer

ARGUMENTS = (ModelArguments, DataArguments, VLKDTrainingArguments)


def add_command(commands: Any) -> None:
    parser = commands.add_parser("train", dataclass_types=ARGUMENTS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, evaluate on `dataset_test_split` if set, and save the model, with a LoRA adapter merged."""
    model_args, data_args, training_args = read_arguments(args)
    if training_args.device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers make small models several times slower
    trainer = build_trainer(model_args, data_args, training_args)
    metrics = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint).metrics
    if model_args.use_peft:
        trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    trainer.end()
    return 0


def read_arguments(args: argparse.Namespace) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    """The options of a run, in three parts.

    Raises:
        ValueError: a value is out of range, or two options contradict each other.
    """
    values = vars(args)
    model_args, data_args, training_args = (
        kind(**{field.name: values[field.name] for field in fields(kind) if field.init}) for kind in ARGUMENTS
    )
    if model_args.bart is not None and training_args.clip is None:
        raise ValueError("clip is not set; set it to the CLIP checkpoint to join with bart.")
    return model_args, data_args, training_args
