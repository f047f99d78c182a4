"""Loads weights and raises for missing ones, which transformers initializes at random with a warning."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

LFS_POINTER = b"version https://git-lfs"


def load_with_info(from_pretrained: Callable, name: str | os.PathLike | None, *args, **kwargs) -> tuple[Any, dict]:
    """
    Calls `from_pretrained` and returns the model and its loading info, for `check_weights`.

    Raises:
        ValueError: A file cannot be read; in a folder, the message names it.
    """
    # `check_weights` reports mismatched sizes.
    load = partial(from_pretrained, name, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    try:
        try:
            return load()
        except NotImplementedError:
            # transformers cannot tie embeddings whose size is not the config's. Untied, they load, and `check_weights`
            # reports both sizes.
            return load(tie_word_embeddings=False)
    except (OSError, ValueError, TypeError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors and pickle raise errors of their own
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(f"'{name}' cannot be loaded{_file_hint(name)}. ({reason})") from error


def _file_hint(name: str | os.PathLike | None) -> str:
    """Names the weight files of a local folder, and a Git LFS pointer among them."""
    files = sorted(Path(name).iterdir()) if name is not None and os.path.isdir(name) else []
    files = [file for file in files if file.suffix in (".safetensors", ".bin")]
    for file in files:
        with open(file, "rb") as content:
            if content.read(len(LFS_POINTER)) == LFS_POINTER:
                return f": {file.name} is a Git LFS pointer instead of the file; run `git lfs pull` in that folder"
    return f"; {', '.join(file.name for file in files)} may be damaged or truncated" if files else ""


def check_weights(name: str | os.PathLike, info: dict[str, Any], remedy: str = "") -> None:
    """
    Raises a ValueError if weights are missing or have another shape than in the config.

    Args:
        name: Folder or Hub name, for the message.
        info: Loading info of `from_pretrained(output_loading_info=True)`.
        remedy: End of the message.
    """
    wrong = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    wrong += [
        f"{key} has shape {tuple(is_)} instead of {tuple(due)}" for key, is_, due in sorted(info["mismatched_keys"])
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        other = min(info["unexpected_keys"], default=None)
        raise ValueError(
            f"The weights of '{name}' do not match its config: {', '.join(wrong[:3])}{more}. "
            + (f"Not in the config: {other}. " if other else "")
            + f"Restore the checkpoint's own config.json, or save it again{remedy}."
        )
