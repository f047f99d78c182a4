"""Loads checkpoints whole or not at all. transformers itself fills what is missing with random weights, and warns."""

import os
from typing import Any


class WholeCheckpoint:
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
            ValueError: there are such weights; the message names them.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path,
            *args,
            ignore_mismatched_sizes=True,  # so that the weights can be named here
            output_loading_info=True,
            **kwargs,
        )
        if pretrained_model_name_or_path is not None and not ignore_mismatched_sizes:
            check_whole(pretrained_model_name_or_path, {**info, "missing_keys": ()} if output_loading_info else info)
        return (model, info) if output_loading_info else model


def check_whole(name: str | os.PathLike, info: dict[str, Any]) -> None:
    """
    Args:
        name: of the checkpoint.
        info: what `from_pretrained(output_loading_info=True)` says of it.

    Raises:
        ValueError: weights are missing or have another shape than the config's; it names the first three.
    """
    wrong = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} is {tuple(is_)} instead of {tuple(due)}" for key, is_, due in sorted(info["mismatched_keys"])]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"'{name}' does not hold the weights that its config asks for: {', '.join(wrong[:3])}{more}. Give the "
            "checkpoint its own config.json, or save it again; `ignore_mismatched_sizes=True` would start these at "
            "random."
        )
