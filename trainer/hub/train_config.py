"""train.yaml, saved with the weights: the options of the run, for `vlkd train --config`."""

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
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# A local path in a sentence; the group is its last part.
LOCAL_PATH = re.compile(r"(?<![\w:/.~<-])(?:(?:~|\.{1,2})/|/(?=[^\s'\"/]+/))(?:[^\s'\"/]+/)*([^\s'\"/]+)")
# Always recorded, even with default values: the options that readers look for first.
CORE = """
clip ttdm_weight itcl_weight icti_weight itdd_weight freeze mask_ratio full_mask_probability max_text_length
per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps learning_rate
projector_learning_rate projector_optimizer optim adam_beta1 adam_beta2 weight_decay max_grad_norm
lr_scheduler_type warmup_steps bf16 fp16 seed
""".split()
# Never recorded: paths and devices of this machine, tokens, repositories, and options for progress and logs.
PRIVATE = """
output_dir cache_dir resume_from_checkpoint run_name project report_to push_to_hub disable_tqdm logging_first_step
logging_steps logging_strategy log_level log_level_replica log_on_each_node use_cpu local_rank skip_memory_metrics
debug eval_samples dataloader_pin_memory include_num_input_tokens_seen gradient_checkpointing
gradient_checkpointing_kwargs
""".split()
PRIVATE_PREFIXES = ("hub_", "trackio_", "ddp_", "do_")


def save_train_config(folder: str | os.PathLike, args: VLKDTrainingArguments, run_config: dict[str, Any]) -> None:
    """Write train.yaml: `run_config`, each training argument that differs from its default, and those in `CORE`.

    Args:
        folder: folder of the weights.
        args: arguments of the run.
        run_config: checkpoints and data, by their keys in the YAML file.
    """
    values = {name: _plain(value) for name, value in run_config.items() if not _is_private(name)}
    values |= {field.name: _plain(getattr(args, field.name)) for field in fields(args) if _is_recorded(field, args)}
    values = {name: value for name, value in values.items() if value not in (None, {}, "")}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = f"# These weights were trained with this configuration, in {args.world_size} process(es).\n"
    text += yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    Path(folder, FILE).write_text(text, encoding="utf-8")


def _is_recorded(option: Field, args: VLKDTrainingArguments) -> bool:
    default = option.default if option.default_factory is MISSING else option.default_factory()
    value, default = _plain(getattr(args, option.name)), _plain(default)
    differs = value != default and (default is not None or value not in ({}, False))  # what None becomes
    return option.name in CORE or (differs and not _is_private(option.name))


def _is_private(name: str) -> bool:
    return name in PRIVATE or name.startswith(PRIVATE_PREFIXES)


def load_train_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of train.yaml in `folder`; empty if there is none.

    Raises:
        ValueError: train.yaml is not a flat mapping.
    """
    path = Path(folder, FILE)
    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no `key: value` lines; delete it, or write the options of the run into it.")
    return values


def check_same_optimizer(checkpoint: str | os.PathLike, args: VLKDTrainingArguments) -> None:
    """Raise a ValueError if the optimizer state in a checkpoint does not match the optimizer of `args`."""
    saved = load_train_config(checkpoint)
    for name in ("optim", "projector_optimizer", "freeze"):
        value = _plain(getattr(args, name))
        if saved.get(name, value) != value:
            raise ValueError(
                f"resume_from_checkpoint: '{checkpoint}' was saved with {name}={saved[name]}, but {name} is {value}, "
                f"which changes the optimizer state. Set {name} to {saved[name]}, or set model_name_or_path to the "
                "checkpoint to start a new run from its weights."
            )


def published_train_config(file: str | os.PathLike) -> bytes:
    """The content of a train.yaml for upload, without local paths."""
    text = Path(file).read_text(encoding="utf-8")
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    config = load_train_config(Path(file).parent)
    values = published(config)
    if "dataset_kwargs" in config and is_hub_name(config.get("dataset_name")):
        values["dataset_kwargs"] = config["dataset_kwargs"]  # its paths are those of the repository
    return (comments + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode()


def published(value: Any) -> Any:
    """A value of a metrics.json or train.yaml with local paths reduced to their last part."""
    if isinstance(value, dict):
        return {key: _published_command(part) if key == "command" else published(part) for key, part in value.items()}
    if isinstance(value, list):
        return [published(part) for part in value]
    return LOCAL_PATH.sub(r"\1", last_part(value)) if isinstance(value, str) else value


def _published_command(command: str) -> str:
    try:
        return shlex.join(map(_published_word, shlex.split(command)))
    except ValueError:  # unbalanced quotes
        return LOCAL_PATH.sub(r"\1", command)


def _published_word(word: str) -> str:
    flag, is_set, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + is_set + LOCAL_PATH.sub(r"\1", last_part(value))


def last_part(name: str) -> str:
    """The last part of a local path; other strings, such as Hub names, unchanged."""
    parts = [part for part in re.split(r"[\\/]", name) if part]
    if len(parts) < 2 or "://" in name:
        return name
    is_path = name.startswith(("/", "./", "../", "~/")) or re.match(r"[A-Za-z]:[\\/]", name) or os.path.exists(name)
    is_nested = len(parts) > 2 and not any(map(str.isspace, name))
    return parts[-1] if is_path or is_nested else name


def is_hub_name(name: Any) -> bool:
    """Whether `name` is "user/name" and no local path."""
    return isinstance(name, str) and bool(HUB_NAME.fullmatch(name)) and not os.path.exists(name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if is_dataclass(value):  # accelerator_config
        parts = {part.name: (getattr(value, part.name), part.default) for part in fields(value)}
        return {name: part for name, (part, default) in parts.items() if part != default}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.value if isinstance(value, Enum) else value
