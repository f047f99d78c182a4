"""What a run would cost: parameters, memory, operations, hours."""

import argparse
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, CLIPTextConfig, CLIPTextModelWithProjection

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration
from modeling_vlkd.conversion_vlkd import check_checkpoint
from trainer.arguments import CONFIG_OPTIONS, ModelArguments
from trainer.cache.clip_features import features_width
from trainer.cost import flops
from trainer.cost.flops_lora import lora_backward, lora_forward
from trainer.lora import add_lora
from trainer.models import teacher_name

CC3M = 3_318_333  # pairs of CC3M's training split as published, its nominal size
CAPTION_TOKENS = 15


def estimate(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, in FLOP, bytes and hours, for the run that `args` (the keys of `vlkd train`, too) describes."""
    check_numbers(args)
    ModelArguments(**{field.name: getattr(args, field.name) for field in fields(ModelArguments)})  # checks them
    if args.bart is not None and args.clip is None:
        raise ValueError("clip is not set; name the CLIP checkpoint that is joined with bart.")
    config = model_config(args, args.config)
    clip = teacher_name(args.clip, config)
    teacher = teacher_config(clip, config.projection_dim)
    epochs = epochs_of(args)
    parameters, memory = count_parameters(config, teacher, args)
    sample = sample_flops(config, teacher, args)
    return {
        "config": args.config,
        "settings": {
            "clip": clip,
            "language_model": args.model_name_or_path or args.bart,
            "freeze": args.freeze,
            "lora_r": args.lora_r if args.use_peft else None,
            "image_tokens": config.image_tokens,
            "image_projector": config.image_projector,
            "cache_image_features": args.cache_image_features,
            "samples": args.samples,
            "epochs": epochs,
            "caption_tokens": args.caption_tokens,
            "device_flops": args.device_flops,
            "utilisation": args.utilisation,
        },
        "parameters": parameters,
        "memory_bytes": memory,
        "flops_per_sample": sample,
        "cache_bytes": cache_bytes(config, args.samples),
        "cost": {
            name: cost(sample, args.samples, epochs, name == "cached", args.device_flops * args.utilisation)
            for name in ("live", "cached")
        },
    }


def check_numbers(args: argparse.Namespace) -> None:
    """Raise a ValueError for a number that no run could have."""
    for name in ("device_flops", "samples", "epochs", "num_train_epochs", "caption_tokens"):
        value = getattr(args, name)
        if value is not None and not (0 < value < math.inf):
            raise ValueError(f"{name} is {value}; it must be above 0.")
    if not 0 < args.utilisation <= 1:
        raise ValueError(f"utilisation is {args.utilisation}; it is a share of device_flops, above 0 and at most 1.")


def epochs_of(args: argparse.Namespace) -> float:
    """`epochs`, else what `max_steps` come to on one device, else `num_train_epochs`."""
    if args.epochs is not None:
        return args.epochs
    if args.max_steps > 0:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return args.max_steps * rows / args.samples
    return args.num_train_epochs


# ------------------------------------------------------------------------------------------------------------- shapes
def model_config(args: argparse.Namespace, recipe: str | None) -> VLKDConfig:
    """The model's shape. It comes from the config.json beside the recipe if there is one, else from the configs of the
    checkpoints that the recipe names; what the recipe says of image tokens and projector holds either way.

    Raises:
        ValueError: there is no config, or the one beside the recipe is that of other checkpoints.
    """
    if args.model_name_or_path is not None:
        return vlkd_config(args.model_name_or_path)
    options = {name: getattr(args, name) for name in CONFIG_OPTIONS}
    if recipe is not None and Path(recipe).with_name("config.json").is_file():
        beside = vlkd_config(Path(recipe).parent)
        if beside.base_models not in (None, [args.clip, args.bart]):
            raise ValueError(
                f"{Path(recipe).with_name('config.json')} is of {' and '.join(beside.base_models)}, but the run is of "
                f"{args.clip} and {args.bart}; name those, or move the recipe to a folder of its own."
            )
        vision, bart, dim = beside.vision_config, beside.text_config, beside.projection_dim
    else:
        clip, bart = check_checkpoint("clip", args.clip, "clip"), check_checkpoint("bart", args.bart, "bart")
        vision, dim = clip.vision_config, clip.projection_dim
    return VLKDConfig(vision_config=vision, text_config=bart, projection_dim=dim, **options)


def vlkd_config(folder: str | os.PathLike) -> VLKDConfig:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' has no config.json that can be read: {' '.join(str(error).split())}") from error
    if config.model_type != "vlkd":
        raise ValueError(f"'{folder}' holds the config of a {config.model_type!r}, not of a 'vlkd'.")
    return config


def teacher_config(clip: str, projection_dim: int) -> CLIPTextConfig:
    """The shape of CLIP's text tower, which a VLKD config does not hold.

    In all of OpenAI's ViT checkpoints it follows from the joint space: as wide, 12 layers, a head to every 64
    dimensions. Any other checkpoint's config is read.
    """
    if clip.startswith("openai/clip-vit-") and not os.path.isdir(clip):
        sizes = {"hidden_size": projection_dim, "intermediate_size": 4 * projection_dim}
        return CLIPTextConfig(**sizes, num_attention_heads=projection_dim // 64, projection_dim=projection_dim)
    config = check_checkpoint("clip", clip, "clip")
    config.text_config.projection_dim = config.projection_dim  # a tower's own config may hold another number
    return config.text_config


# ------------------------------------------------------------------------------------------------------------ figures
def count_parameters(
    config: VLKDConfig, teacher: CLIPTextConfig, args: argparse.Namespace
) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
    """Parameters by part, all and those that learn; and the bytes they take in training.

    `vlkd train` holds everything in float32 (bf16 is autocast): 4 bytes a weight, 4 a gradient, 8 for AdamW's two
    moments, 4 for Muon's one. The teacher is gone by then, since its embeddings are cached; ITDD's reader is a second
    BART.
    """
    with torch.device("meta"):
        model, text_tower = VLKDForConditionalGeneration(config), CLIPTextModelWithProjection(teacher)
    model.freeze_language_model(args.freeze)
    maps = [model.text_projection, model.image_projection]
    parts = {
        "vision tower": [model.vision_model, model.visual_projection],
        "teacher": [text_tower.requires_grad_(False)],
        "BART": [model.language_model],
        "W_e and W_d": maps,
    }
    if args.use_peft:
        add_lora(model, r=args.lora_r)
        maps = [model.text_projection.modules_to_save, model.image_projection.modules_to_save]
        parts["W_e and W_d"] = maps
    found = {}
    for name, modules in parts.items():
        parameters = [p for module in modules for p in module.parameters()]
        learning = sum(p.numel() for p in parameters if p.requires_grad)
        found[name] = {"all": sum(p.numel() for p in parameters), "learning": learning}
    learning = sum(part["learning"] for part in found.values())
    moments = 2 * learning
    if args.projector_optimizer == "muon":
        moments -= sum(p.numel() for module in maps for p in module.parameters() if p.ndim == 2)
    reader = found["BART"]["all"] if args.itdd_weight else 0
    memory = {"weights": 4 * (model.num_parameters() + reader), "gradients": 4 * learning, "optimizer": 4 * moments}
    return found, memory


def sample_flops(config: VLKDConfig, teacher: CLIPTextConfig, args: argparse.Namespace) -> dict[str, int]:
    """FLOP of one image with its caption, by part; see trainer/cost/flops.py.

    The corrupted caption is counted as long as the caption itself, and padding not at all: give the length that
    captions are padded to, to count it.
    """
    tokens, bart = min(args.caption_tokens, args.max_text_length), config.text_config
    on = {"infilling": args.icti_weight > 0, "alignment": args.ttdm_weight > 0 or args.itcl_weight > 0}
    found = {
        "vision tower": flops.vision_forward(config),
        "teacher": flops.teacher_forward(teacher, min(args.caption_tokens, teacher.max_position_embeddings)),
        "student forward": flops.student_forward(config, tokens, tokens),
    }
    if args.use_peft:
        found["adapters forward"] = lora_forward(config, tokens, tokens, args.lora_r)
        found["student backward"] = lora_backward(config, tokens, tokens, args.lora_r, **on)
    else:
        found["student backward"] = flops.student_backward(config, tokens, tokens, args.freeze, **on)
    if args.gradient_checkpointing:
        found["gradient checkpointing"] = flops.checkpointing_forward(config, tokens, tokens)
    if args.contrastive_chunk_size:
        found["contrastive chunks"] = flops.chunking_forward(config, tokens)
    if args.itdd_weight:
        found["readings forward"] = flops.reading_forward(config, tokens)
        found["reader"] = flops.reader_forward(bart, tokens, tokens)
        found["readings backward"] = flops.reading_backward(config, tokens, args.freeze)
    return found


def cache_bytes(config: VLKDConfig, samples: int) -> dict[str, dict[str, int]]:
    """Bytes of the feature cache, a row and in all: projection_dim numbers of two bytes for a caption and for each
    image token that is kept.
    """
    row = {"captions": 2 * config.projection_dim}
    row |= {f"images, {tokens}": 2 * features_width(config, tokens) for tokens in ("pooled", "all")}
    return {name: {"row": size, "all": size * samples} for name, size in row.items()}


def cost(sample: dict[str, int], samples: int, epochs: float, cached: bool, flops_per_second: float) -> dict[str, Any]:
    """FLOP of the whole run, hours, and samples a second. The teacher reads every caption once; the vision tower sees
    every image once, if its tokens are cached, else in every epoch.
    """
    seen = samples * epochs
    student = sum(sample[name] for name in sample if name not in ("vision tower", "teacher"))
    parts = {
        "vision tower": sample["vision tower"] * (samples if cached else seen),
        "teacher": sample["teacher"] * samples,
        "student": student * seen,
    }
    seconds = sum(parts.values()) / flops_per_second
    return {"flops": sum(parts.values()), "hours": seconds / 3600, "samples_per_second": seen / seconds}
