"""`vlkd train`: a flat YAML file becomes a trained model."""

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_utils import HubStrategy

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import CONFIG_OPTIONS, DataArguments, ModelArguments
from trainer.data import EpochDataset
from trainer.feature_cache import check_teacher, load_teacher, teacher_name
from trainer.flaws import FILE as SKIPPED
from trainer.flaws import ReportSkipped
from trainer.loading import load_vlkd
from trainer.lora import add_lora
from trainer.training_args import VLKDTrainingArguments
from trainer.training_data import load_rows, load_stream
from trainer.vlkd_trainer import VLKDTrainer

ARGUMENTS = (ModelArguments, DataArguments, VLKDTrainingArguments)


def add_command(commands: Any) -> None:
    parser = commands.add_parser("train", dataclass_types=ARGUMENTS, help="join CLIP and BART, and distil")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, evaluate if there is a split for it, and leave the complete model in `output_dir`, an adapter merged.

    `resume_from_checkpoint` is a checkpoint's folder, or `true` for the newest one in `output_dir`.
    """
    model_args, data_args, training_args = read_arguments(args)
    if training_args.device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow small models down manyfold
    trainer = build_trainer(model_args, data_args, training_args)
    metrics = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint).metrics
    if model_args.lora_rank is not None:
        trainer.model = trainer.model.merge_and_unload()
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics |= last_evaluation(trainer) or trainer.evaluate()
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    trainer.end()
    return 0


def last_evaluation(trainer: VLKDTrainer) -> dict[str, float]:
    """The metrics of the trained model, if training ended with an evaluation of it; else none."""
    if trainer.args.load_best_model_at_end:
        return {}
    state = trainer.state
    found = [log for log in state.log_history if "eval_loss" in log and log["step"] == state.global_step]
    return {name: value for name, value in found[-1].items() if name != "step"} if found else {}


def read_arguments(args: argparse.Namespace) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    """The three parts of a run's options.

    Raises:
        ValueError: a value is out of its range, or two contradict each other.
    """
    values = vars(args)
    model_args, data_args, training_args = (
        kind(**{field.name: values[field.name] for field in fields(kind) if field.init}) for kind in ARGUMENTS
    )
    if model_args.bart is not None and training_args.clip is None:
        raise ValueError("clip is not set; name the CLIP checkpoint that is joined with bart.")
    if training_args.replay_weight and data_args.text_dataset is None:
        raise ValueError(
            f"replay_weight is {training_args.replay_weight}, which requires text_dataset: name a dataset of plain "
            "text, or set replay_weight to 0."
        )
    return model_args, data_args, training_args


def build_trainer(model_args: ModelArguments, data_args: DataArguments, args: VLKDTrainingArguments) -> VLKDTrainer:
    """Load checkpoints and data, fill the feature cache, and build the trainer.

    Raises:
        ValueError: a checkpoint, dataset, split or column is missing, or two options contradict each other.
    """
    if args.eval_strategy != "no" and data_args.eval_split is None:
        raise ValueError(f"eval_strategy is {args.eval_strategy.value}, which requires eval_split.")
    if model_args.lora_rank is not None and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise ValueError(
            f"hub_strategy is {args.hub_strategy.value}, which would push checkpoints, and with lora_rank they are "
            "adapters; set it to end."
        )
    model, processor = load_model(model_args, args.clip, args.seed)
    clip = teacher_name(args.clip, model.config)
    teacher, teacher_tokenizer = load_teacher(clip)
    check_teacher(teacher, model, clip)
    check_image_features(data_args, model)
    model, teacher = model.to(args.device), teacher.to(args.device)

    if args.resume_from_checkpoint is None and args.process_index == 0:
        Path(args.output_dir, SKIPPED).unlink(missing_ok=True)  # an earlier run's

    def rows(split: str) -> EpochDataset:
        return load_rows(data_args, args, split, model, processor, teacher, teacher_tokenizer)

    streaming, split = data_args.streaming, data_args.train_split
    train_dataset = load_stream(data_args, args, split, processor) if streaming else rows(split)
    eval_dataset = rows(data_args.eval_split) if data_args.eval_split else None
    if model_args.lora_rank is not None:  # after the cache, whose key counts all that is frozen
        set_seed(args.seed)
        model = add_lora(model, model_args.lora_rank)
    return VLKDTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        sources={**asdict(model_args), **data_args.sources()},
        callbacks=[ReportSkipped(args.output_dir)],
    )


def load_model(
    args: ModelArguments, clip: str | None = None, seed: int = 0
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Join CLIP and BART by maps that `seed` draws, or load a VLKD checkpoint, in float32.

    Raises:
        ValueError: a checkpoint is missing or of another kind.
    """
    if args.model is None:
        options = {name: getattr(args, name) for name in (*CONFIG_OPTIONS, "projector_init")}
        processor = VLKDProcessor.from_vision_text_pretrained(clip, args.bart)  # first: it is the smaller
        model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip, args.bart, seed=seed, **options)
    else:
        model, processor = load_vlkd(args.model, "model")
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model, processor


def check_image_features(data_args: DataArguments, model: VLKDForConditionalGeneration) -> None:
    """Raise a ValueError if the feature cache would hold fewer image tokens than the decoder sees."""
    if data_args.image_features == "pooled" and model.config.image_tokens != "pooled":
        raise ValueError(
            f"image_features is pooled, but the decoder sees image_tokens={model.config.image_tokens}; set "
            "image_features to all or off, or image_tokens to pooled."
        )
