"""Estimate the cost of a training run: parameters, memory, FLOP and hours. Reads configs only, no weights or data."""

import argparse
import math
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedModel

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration
from modeling_vlkd.conversion_vlkd import check_checkpoint
from trainer.arguments import CONFIG_OPTIONS, ModelArguments, check_checkpoints
from trainer.cache.clip_features import features_width
from trainer.cost.flops import step_flops
from trainer.lora import add_lora
from trainer.models import teacher_name

CC3M = 3_318_333  # image-caption pairs in the published training split of CC3M
CAPTION_TOKENS = 15


def estimate(args: argparse.Namespace) -> dict[str, Any]:
    """Estimate the cost of a run, in FLOP, bytes and hours.

    Args:
        args: all options of `vlkd train` and `vlkd estimate`.

    Raises:
        ValueError: a number is out of range, or the config of a checkpoint cannot be read.
    """
    check_numbers(args)
    ModelArguments(**{field.name: getattr(args, field.name) for field in fields(ModelArguments)})  # validates them
    check_checkpoints(args.bart, args.clip)
    config = model_config(args)
    clip = teacher_name(args.clip, config)
    model, teacher = build_on_meta(config, teacher_config(clip, config.projection_dim), args)
    parts = model_parts(model, teacher)
    flops = step_flops(model, teacher, args)
    epochs, speed = epochs_of(args), args.device_flops * args.mfu
    settings = ("freeze", "cache_image_features", "samples", "caption_tokens", "device_flops", "mfu")
    return {
        "config": args.config,
        "settings": {
            "clip": clip,
            "language_model": args.model_name_or_path or args.bart,
            "lora_r": args.lora_r if args.use_peft else None,
            "image_tokens": config.image_tokens,
            "image_projector": config.image_projector,
            "epochs": epochs,
            **{name: getattr(args, name) for name in settings},
        },
        "parameters": {
            name: {"total": count(part, trainable=False), "trainable": count(part)} for name, part in parts.items()
        },
        "memory_bytes": memory_bytes(model, parts, args),
        "flops_per_sample": flops,
        "cache_bytes": cache_bytes(config, args.samples),
        "cost": {name: cost(flops, args.samples, epochs, name == "cached", speed) for name in ("live", "cached")},
    }


def check_numbers(args: argparse.Namespace) -> None:
    """Raise a ValueError for a number that is out of range."""
    for name in ("device_flops", "samples", "epochs", "num_train_epochs", "caption_tokens"):
        value = getattr(args, name)
        if value is not None and not (0 < value < math.inf):
            raise ValueError(f"{name} is {value}; it must be above 0.")
    if not 0 < args.mfu <= 1:
        raise ValueError(f"mfu is {args.mfu}; it is a fraction of device_flops, above 0 and at most 1.")


def epochs_of(args: argparse.Namespace) -> float:
    """`epochs`; if unset, the epochs in `max_steps` on one device; if that is unset too, `num_train_epochs`."""
    if args.epochs is not None:
        return args.epochs
    if args.max_steps > 0:
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return args.max_steps * rows / args.samples
    return args.num_train_epochs


def model_config(args: argparse.Namespace) -> VLKDConfig:
    """The config of the model to train.

    Sizes come from `model_name_or_path`, else from a config.json next to the recipe, else from the configs of `clip`
    and `bart`. The options of the run set the rest, such as `image_tokens`.

    Raises:
        ValueError: a config cannot be read, or config.json belongs to other checkpoints than `clip` and `bart`.
    """
    if args.model_name_or_path is not None:
        return VLKDConfig.from_pretrained(args.model_name_or_path)
    if args.config is not None and Path(args.config).with_name("config.json").is_file():
        found = VLKDConfig.from_pretrained(Path(args.config).parent)
        if found.base_models not in (None, [args.clip, args.bart]):
            raise ValueError(
                f"{Path(args.config).with_name('config.json')} describes {' and '.join(found.base_models)}, but the "
                f"run uses {args.clip} and {args.bart}. Use the same checkpoints, or move the recipe elsewhere."
            )
        vision, bart, dim = found.vision_config, found.text_config, found.projection_dim
    else:
        clip, bart = check_checkpoint("clip", args.clip, "clip"), check_checkpoint("bart", args.bart, "bart")
        vision, dim = clip.vision_config, clip.projection_dim
    options = {name: getattr(args, name) for name in CONFIG_OPTIONS}
    return VLKDConfig(vision_config=vision, text_config=bart, projection_dim=dim, **options)


def teacher_config(clip: str, projection_dim: int) -> CLIPTextConfig:
    """The config of CLIP's text tower, which a VLKD config does not hold.

    In OpenAI's ViT checkpoints it follows from `projection_dim`: the same width, 12 layers, 64 dimensions per head.
    Nothing is downloaded for these. The config of any other checkpoint is read.
    """
    if clip.startswith("openai/clip-vit-") and not os.path.isdir(clip):
        sizes = {"hidden_size": projection_dim, "intermediate_size": 4 * projection_dim}
        return CLIPTextConfig(**sizes, num_attention_heads=projection_dim // 64, projection_dim=projection_dim)
    config = check_checkpoint("clip", clip, "clip")
    config.text_config.projection_dim = config.projection_dim  # the text config may hold another number
    return config.text_config


def build_on_meta(
    config: VLKDConfig, teacher: CLIPTextConfig, args: argparse.Namespace
) -> tuple[PreTrainedModel, CLIPTextModelWithProjection]:
    """The model as `vlkd train` prepares it, and its teacher, both on the meta device and with eager attention."""
    with torch.device("meta"):
        model, text_tower = VLKDForConditionalGeneration(config), CLIPTextModelWithProjection(teacher)
    for module in (model, text_tower):
        module.set_attn_implementation("eager")
    model.freeze_language_model(args.freeze)
    if args.activation_checkpointing or args.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model = add_lora(model, r=args.lora_r) if args.use_peft else model
    return model.train(), text_tower.requires_grad_(False)


def model_parts(model: PreTrainedModel, teacher: CLIPTextModelWithProjection) -> dict[str, list[nn.Module]]:
    maps = [model.text_projection, model.image_projection]
    return {
        "vision tower": [model.vision_model, model.visual_projection],
        "teacher": [teacher],
        "BART": [model.language_model],
        "W_e and W_d": [getattr(module, "modules_to_save", module) for module in maps],  # PEFT wraps them
    }


def count(modules: list[nn.Module], trainable: bool = True, matrices: bool = False) -> int:
    """The number of parameters: all, those that are trained, or those that are trained and belong to a matrix."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return sum(p.numel() for p in parameters if (p.requires_grad or not trainable) and (p.ndim == 2 or not matrices))


def memory_bytes(
    model: PreTrainedModel, parts: dict[str, list[nn.Module]], args: argparse.Namespace
) -> dict[str, int]:
    """Memory of weights, gradients and optimizer, all in float32 as in `vlkd train` (bf16 is autocast).

    AdamW holds two moments of each trained parameter, Muon one. The teacher is not in memory during training, since
    its embeddings are cached. ITDD needs a second BART.
    """
    trainable = count([model])
    moments = 2 * trainable
    if args.projector_optimizer == "muon":
        moments -= count(parts["W_e and W_d"], matrices=True)
    itdd_teacher = count(parts["BART"], trainable=False) if args.itdd_weight else 0
    weights = count([model], trainable=False) + itdd_teacher
    return {"weights": 4 * weights, "gradients": 4 * trainable, "optimizer": 4 * moments}


def cache_bytes(config: VLKDConfig, samples: int) -> dict[str, dict[str, int]]:
    """Bytes of the feature cache, per row and in total: `projection_dim` float16 numbers per caption and token."""
    row = {"captions": 2 * config.projection_dim}
    row |= {f"images, {tokens}": 2 * features_width(config, tokens) for tokens in ("pooled", "all")}
    return {name: {"row": size, "all": size * samples} for name, size in row.items()}


def cost(flops: dict[str, int], samples: int, epochs: float, cached: bool, speed: float) -> dict[str, Any]:
    """FLOP, hours and samples per second of the run.

    The teacher reads every caption once. The vision tower encodes every image once if image features are cached, else
    once per epoch.

    Args:
        flops: FLOP per sample, by part.
        speed: FLOP per second that the device achieves.
    """
    seen = samples * epochs
    student = sum(flops.values()) - flops["vision tower"] - flops["teacher"]
    total = flops["teacher"] * samples + flops["vision tower"] * (samples if cached else seen) + student * seen
    return {"flops": total, "hours": total / speed / 3600, "samples_per_second": seen / (total / speed)}
