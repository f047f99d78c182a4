"""train.yaml beside the weights: how a model was trained, in the keys of `vlkd train --config`."""

import os
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from trainer.training_args import VLKDTrainingArguments

FILE = "train.yaml"
# Written down in any case: the options that one looks for first.
CORE = (
    "clip",
    "ttdm_weight",
    "itcl_weight",
    "icti_weight",
    "replay_weight",
    "itdd_weight",
    "freeze",
    "mask_ratio",
    "mask_all_probability",
    "max_text_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "projection_learning_rate",
    "projection_optimizer",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "warmup_steps",
    "bf16",
    "fp16",
    "seed",
)
# Never written down: places and devices of this machine, tokens and repositories, and what only shows progress.
PRIVATE = (
    *("output_dir", "cache_dir", "resume_from_checkpoint", "run_name", "project", "report_to", "push_to_hub"),
    *("disable_tqdm", "logging_first_step", "logging_steps", "logging_strategy", "log_level", "log_level_replica"),
    *("log_on_each_node", "use_cpu", "local_rank", "skip_memory_metrics", "debug", "dataloader_pin_memory"),
    "include_num_input_tokens_seen",
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),  # older names of activation_checkpointing
)
PRIVATE_PREFIXES = ("hub_", "trackio_", "ddp_", "do_")


def save_recipe(folder: str | os.PathLike, args: VLKDTrainingArguments, sources: dict[str, Any]) -> None:
    """Writes train.yaml: `sources`, every training argument that differs from its default, and the core ones.

    Args:
        folder: of the weights.
        args: the run's.
        sources: checkpoints and data, by their keys in the YAML file; of a path on this machine the last part is kept.
    """
    values = {name: _plain(value) for name, value in sources.items() if not _is_private(name)}
    values |= {field.name: _plain(getattr(args, field.name)) for field in fields(args) if _is_recorded(field, args)}
    values = {name: value for name, value in values.items() if value not in (None, {}, "")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = f"# {args.world_size} process(es) with this recipe trained the weights beside this file.\n"
    text += yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    Path(folder, FILE).write_text(text, encoding="utf-8")


def _is_recorded(option: Field, args: VLKDTrainingArguments) -> bool:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    value, default = _plain(getattr(args, option.name)), _plain(default)
    differs = value != default and (default is not None or value not in ({}, False))  # which None is resolved to
    return option.name in CORE or (differs and not _is_private(option.name))


def _is_private(name: str) -> bool:
    return name in PRIVATE or name.startswith(PRIVATE_PREFIXES)


def load_recipe(folder: str | os.PathLike) -> dict[str, Any]:
    """What `save_recipe` wrote into `folder`; nothing, where it did not.

    Raises:
        ValueError: train.yaml is no flat mapping.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} holds no `key: value` lines; delete it, or write the run's options into it.")
    return recipe


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if is_dataclass(value):  # accelerator_config
        parts = {part.name: (getattr(value, part.name), part.default) for part in fields(value)}
        return {name: part for name, (part, default) in parts.items() if part != default}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip(os.sep))
    return value.value if isinstance(value, Enum) else value
