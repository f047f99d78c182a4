"""Loads checkpoints whole or not at all. transformers itself fills what is missing with random weights, and warns."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LFS_POINTER = b"version https://git-lfs"


class StrictLoadingMixin:
    """For models: `from_pretrained` refuses a checkpoint that lacks a weight, or has one of another shape."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs,
    ) -> Any:
        """
        As every model's. `ignore_mismatched_sizes=True` lets weights that are missing or of another shape be random;
        `output_loading_info=True` lets missing ones be random, and the caller sees which.

        Raises:
            ValueError: there are such weights; the message names them. Or the file cannot be read.
        """
        model, info = read_weights(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        if pretrained_model_name_or_path is not None and not ignore_mismatched_sizes:
            check_whole(
                pretrained_model_name_or_path,
                {**info, "missing_keys": ()} if output_loading_info else info,
                remedy="; `ignore_mismatched_sizes=True` would start these at random",
            )
        return (model, info) if output_loading_info else model


def read_weights(from_pretrained: Callable, name: str | os.PathLike | None, *args, **kwargs) -> tuple[Any, dict]:
    """
    The model, and what transformers says of its weights, for `check_whole`.

    Args:
        from_pretrained: of the model's class.
        name: folder or Hub name.

    Raises:
        ValueError: a file cannot be read; it is named where it lies in a folder.
    """
    try:  # mismatched sizes are let through, so that `check_whole` can name them
        return from_pretrained(name, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    except (OSError, ValueError, TypeError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors and pickle have their own kinds
        raise ValueError(
            f"The weights of '{name}' cannot be read: {_damage(name) or 'the file is damaged or cut off'}. "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _damage(name: str | os.PathLike | None) -> str | None:
    """What is wrong with which file of a local folder."""
    if name is None or not os.path.isdir(name):
        return None
    files = sorted(file for file in Path(name).iterdir() if file.suffix in (".safetensors", ".bin"))
    for file in files:
        with open(file, "rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{file.name} is a Git LFS pointer in place of the file; run `git lfs pull` in that folder"
    damaged = [file.name for file in files if file.suffix == ".bin" or _is_cut_off(file)]
    return f"{', '.join(damaged)} is damaged or cut off" if damaged else None


def _is_cut_off(file: Path) -> bool:
    """Whether a safetensors file ends before or after its header says."""
    with open(file, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(min(length, 2**27)))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return True
    return file.stat().st_size != 8 + length + max(ends, default=0)


def check_whole(name: str | os.PathLike, info: dict[str, Any], remedy: str = "") -> None:
    """
    Args:
        name: of the checkpoint.
        info: what `from_pretrained(output_loading_info=True)` says of it.
        remedy: ends the message.

    Raises:
        ValueError: weights are missing or have another shape than the config's; it names the first three, and the
            first of those that the config does not ask for.
    """
    wrong = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} is {tuple(is_)} instead of {tuple(due)}" for key, is_, due in sorted(info["mismatched_keys"])]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        other = min(info["unexpected_keys"], default=None)
        raise ValueError(
            f"'{name}' does not hold the weights that its config asks for: {', '.join(wrong[:3])}{more}. "
            + (f"The config does not ask for what it holds: {other}. " if other else "")
            + f"Give the checkpoint its own config.json, or save it again{remedy}."
        )
