"""train.yaml beside the weights: how a model was trained, in the keys of `vlkd train --config`."""

import os
import re
import shlex
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from trainer.arguments import VLKDTrainingArguments

FILE = "train.yaml"
# A local path inside a sentence; the group is its last part.
LOCAL_PATH = re.compile(r"(?<![\w:/.~<-])(?:(?:~|\.{1,2})/|/(?=[^\s'\"/]+/))(?:[^\s'\"/]+/)*([^\s'\"/]+)")
# Written down in any case: the options that one looks for first.
CORE = (
    "clip",
    "ttdm_weight",
    "itcl_weight",
    "icti_weight",
    "itdd_weight",
    "freeze",
    "mask_ratio",
    "full_mask_probability",
    "max_text_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "projector_learning_rate",
    "projector_optimizer",
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
        sources: checkpoints and data, by their keys in the YAML file.
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


def published_recipe(file: str | os.PathLike) -> bytes:
    """The content of a train.yaml without local paths, for upload."""
    text = Path(file).read_text(encoding="utf-8")
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    values = published(load_recipe(Path(file).parent))
    return (comments + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode()


def published(value: Any) -> Any:
    """A value of a metrics.json or train.yaml with the name of each local file or folder in place of its path."""
    if isinstance(value, dict):
        return {key: _published_command(part) if key == "command" else published(part) for key, part in value.items()}
    if isinstance(value, list):
        return [published(part) for part in value]
    return LOCAL_PATH.sub(r"\1", last_part(value)) if isinstance(value, str) else value


def _published_command(command: str) -> str:
    try:
        return shlex.join(map(_published_word, shlex.split(command)))
    except ValueError:  # not the quotes of a shell
        return LOCAL_PATH.sub(r"\1", command)


def _published_word(word: str) -> str:
    flag, is_set, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + is_set + LOCAL_PATH.sub(r"\1", last_part(value))


def last_part(name: str) -> str:
    """The last part of a local path; what is no path, or might be a name on the Hub, as it is."""
    parts = [part for part in re.split(r"[\\/]", name) if part]
    if len(parts) < 2 or "://" in name:
        return name
    is_path = name.startswith(("/", "./", "../", "~/")) or re.match(r"[A-Za-z]:[\\/]", name) or os.path.exists(name)
    is_nested = len(parts) > 2 and not any(map(str.isspace, name))
    return parts[-1] if is_path or is_nested else name


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if is_dataclass(value):  # accelerator_config
        parts = {part.name: (getattr(value, part.name), part.default) for part in fields(value)}
        return {name: part for name, (part, default) in parts.items() if part != default}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.value if isinstance(value, Enum) else value
