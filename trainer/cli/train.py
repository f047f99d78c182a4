"""`vlkd train`: train a model with the options of a YAML file."""

import argparse
from dataclasses import fields
from typing import Any

import torch

from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments, check_checkpoints
from trainer.build import build_trainer
from trainer.vlkd_trainer import VLKDTrainer

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
        metrics |= last_evaluation(trainer) or trainer.evaluate()
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    trainer.end()
    return 0


def last_evaluation(trainer: VLKDTrainer) -> dict[str, float]:
    """The metrics of the trained model, if training ended with its evaluation; else an empty dict."""
    if trainer.args.load_best_model_at_end:
        return {}
    state = trainer.state
    found = [log for log in state.log_history if "eval_loss" in log and log["step"] == state.global_step]
    return {name: value for name, value in found[-1].items() if name != "step"} if found else {}


def read_arguments(args: argparse.Namespace) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    """The options of a run, in three parts.

    Raises:
        ValueError: a value is out of range, or two options contradict each other.
    """
    values = vars(args)
    model_args, data_args, training_args = (
        kind(**{field.name: values[field.name] for field in fields(kind) if field.init}) for kind in ARGUMENTS
    )
    check_checkpoints(model_args.bart, training_args.clip)
    return model_args, data_args, training_args
