"""train.yaml beside the weights: how a model was trained, in the keys of `vlkd train --config`."""

import os
import re
import shlex
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from trainer.training_args import VLKDTrainingArguments

FILE = "train.yaml"
# A local path inside a sentence; the group is its last part.
LOCAL_PATH = re.compile(r"(?<![\w:/.~<-])(?:(?:~|\.{1,2})/|/(?=[^\s'\"/]+/))(?:[^\s'\"/]+/)*([^\s'\"/]+)")
# What makes the weights what they are. Where things lie, tokens and other ways to say the same stay on this machine.
ARGUMENTS = (
    "ttdm_weight",
    "itcl_weight",
    "icti_weight",
    "replay_weight",
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


def save_recipe(folder: str | os.PathLike, args: VLKDTrainingArguments, sources: dict[str, Any]) -> None:
    """Writes train.yaml.

    Args:
        folder: of the weights.
        args: the run's.
        sources: checkpoints and data, by their keys in the YAML file; a local path is reduced to its last part.
    """
    values = {name: _plain(value) for name, value in sources.items() if value not in (None, {}, "")}
    values |= {name: _plain(getattr(args, name)) for name in ARGUMENTS if getattr(args, name) is not None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = f"# {args.world_size} process(es) with this recipe trained the weights beside this file.\n"
    text += yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    Path(folder, FILE).write_text(text, encoding="utf-8")


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


def published(value: Any) -> Any:
    """A value of a metrics.json with the name of each local file or folder in place of its path."""
    if isinstance(value, dict):
        return {key: _published_command(part) if key == "command" else published(part) for key, part in value.items()}
    if isinstance(value, list):
        return [published(part) for part in value]
    return LOCAL_PATH.sub(r"\1", last_part(value)) if isinstance(value, str) else value


def _published_command(command: str) -> str:
    try:
        return shlex.join(last_part(word) for word in shlex.split(command))
    except ValueError:  # not the quotes of a shell
        return LOCAL_PATH.sub(r"\1", command)


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
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, Enum):
        return value.value
    return last_part(value) if isinstance(value, str) else value
