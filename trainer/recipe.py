"""train.yaml beside the weights: how a model was trained, in the keys of `vlkd train --config`."""

import os
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from trainer.training_args import VLKDTrainingArguments

FILE = "train.yaml"
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
        sources: checkpoints and data, by their keys in the YAML file; of a path on this machine the last part is kept.
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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip(os.sep))
    return value.value if isinstance(value, Enum) else value
