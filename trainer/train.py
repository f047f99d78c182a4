"""`vlkd train`: a flat YAML file becomes a trained model."""

import argparse
from dataclasses import asdict, fields
from typing import Any

import torch
from datasets import Dataset
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import DataArguments, ModelArguments
from trainer.checkpoint import load_vlkd
from trainer.data import EpochDataset, check_columns, load_split
from trainer.data_collator import VLKDDataCollator
from trainer.feature_cache import add_image_features, add_teacher_embeds, load_teacher
from trainer.infilling import TextInfilling
from trainer.training_args import VLKDTrainingArguments
from trainer.vlkd_trainer import VLKDTrainer

ARGUMENTS = (ModelArguments, DataArguments, VLKDTrainingArguments)


def add_command(commands: Any) -> None:
    parser = commands.add_parser("train", dataclass_types=ARGUMENTS, help="join CLIP and BART, and distil")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, evaluate if there is a split for it, and leave the complete model in `output_dir`.

    `resume_from_checkpoint` is a checkpoint's folder, or `true` for the newest one in `output_dir`.
    """
    values = vars(args)
    model_args, data_args, training_args = (
        kind(**{field.name: values[field.name] for field in fields(kind) if field.init}) for kind in ARGUMENTS
    )
    if training_args.device.type == "cpu":
        torch.set_flush_denormal(True)  # denormal numbers slow small models down manyfold
    trainer = build_trainer(model_args, data_args, training_args)
    checkpoint = training_args.resume_from_checkpoint
    metrics = trainer.train(resume_from_checkpoint=True if checkpoint == "true" else checkpoint).metrics
    trainer.save_model()
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    trainer.save_metrics("all", metrics)
    trainer.save_state()
    trainer.end()
    return 0


def build_trainer(model_args: ModelArguments, data_args: DataArguments, args: VLKDTrainingArguments) -> VLKDTrainer:
    """Load checkpoints and data, fill the feature cache, and join them in a trainer.

    Raises:
        ValueError: a checkpoint, dataset, split or column is missing, or two options contradict each other.
    """
    if args.replay_weight and data_args.text_dataset is None:
        raise ValueError(
            f"replay_weight is {args.replay_weight}, but text_dataset is not set: what text is to be replayed?"
        )
    if args.eval_strategy != "no" and data_args.eval_split is None:
        raise ValueError(f"eval_strategy is {args.eval_strategy.value}, but eval_split is not set: evaluate on what?")
    model, processor = load_model(model_args)
    teacher, teacher_tokenizer = load_teacher(model_args.clip)
    check_teacher(teacher, model, model_args, data_args)
    model, teacher = model.to(args.device), teacher.to(args.device)

    def examples(split: str) -> EpochDataset:
        with args.main_process_first(desc="feature cache"):  # the others read what the first one wrote
            dataset = load_captions(data_args, split)
            # Images first: their key then depends on nothing but them, and what follows copies no image.
            if data_args.image_features != "off":
                dataset = add_image_features(
                    dataset, model, processor, data_args.image_features, data_args.image_column, data_args.cache_dir
                )
            dataset = add_teacher_embeds(
                dataset, teacher, teacher_tokenizer, data_args.caption_column, data_args.cache_dir
            )
            texts = load_texts(data_args, split) if args.replay_weight else None
        return EpochDataset(dataset, texts, args.seed)

    return VLKDTrainer(
        model,
        args,
        train_dataset=examples(data_args.train_split),
        eval_dataset=examples(data_args.eval_split) if data_args.eval_split else None,
        data_collator=build_collator(model, processor, teacher_tokenizer, data_args, args),
        processing_class=processor,
        sources={**asdict(model_args), **asdict(data_args), "cache_dir": None},
    )


def load_model(args: ModelArguments) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Join CLIP and BART, or load a VLKD checkpoint, in float32.

    Raises:
        ValueError: a checkpoint is missing or of another kind.
    """
    if args.model is None:
        names = (
            "image_tokens",
            "image_projector",
            "image_token_expansion",
            "patch_attention",
            "prompt_in_encoder",
            "projector_init",
        )
        options = {name: getattr(args, name) for name in names}
        model = VLKDForConditionalGeneration.from_vision_text_pretrained(args.clip, args.bart, **options)
        processor = VLKDProcessor.from_vision_text_pretrained(args.clip, args.bart)
    else:
        model, processor = load_vlkd(args.model, "model")
    if args.attn_implementation is not None:
        model.set_attn_implementation(args.attn_implementation)
    return model, processor


def check_teacher(
    teacher: CLIPTextModelWithProjection,
    model: VLKDForConditionalGeneration,
    model_args: ModelArguments,
    data_args: DataArguments,
) -> None:
    """Raise a ValueError if the model does not live in the teacher's space, or its tokens are not to be cached."""
    if teacher.config.projection_dim != model.config.projection_dim:
        raise ValueError(
            f"clip: '{model_args.clip}' embeds in {teacher.config.projection_dim} dimensions, the model in "
            f"{model.config.projection_dim}; name the CLIP that '{model_args.model}' was made from."
        )
    if data_args.image_features == "pooled" and model.config.image_tokens != "pooled":
        raise ValueError(
            f"image_features is pooled, but the decoder sees image_tokens={model.config.image_tokens}; set "
            "image_features to all or off, or image_tokens to pooled."
        )


def load_captions(args: DataArguments, split: str) -> Dataset:
    """Images and captions of one split, without any other column."""
    dataset = load_split(args.dataset, split, **args.dataset_kwargs)
    check_columns(dataset, args.dataset, image_column=args.image_column, caption_column=args.caption_column)
    return dataset.select_columns([args.image_column, args.caption_column])


def load_texts(args: DataArguments, split: str) -> Any:
    """The column of documents of one split."""
    dataset = load_split(args.text_dataset, split, **args.text_dataset_kwargs)
    check_columns(dataset, args.text_dataset, text_column=args.text_column)
    return dataset[args.text_column]


def build_collator(
    model: VLKDForConditionalGeneration,
    processor: VLKDProcessor,
    teacher_tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    args: VLKDTrainingArguments,
) -> VLKDDataCollator:
    return VLKDDataCollator(
        processor=processor,
        teacher_tokenizer=teacher_tokenizer,
        infilling=TextInfilling(processor.tokenizer.mask_token_id, args.mask_ratio, args.mask_all_probability),
        decoder_start_token_id=model.config.text_config.decoder_start_token_id,
        projection_dim=model.config.projection_dim,
        max_text_length=min(args.max_text_length, model.config.text_config.max_position_embeddings),
        seed=args.seed,
        image_column=data_args.image_column,
        caption_column=data_args.caption_column,
    )
