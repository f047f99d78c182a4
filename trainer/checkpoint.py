"""Loads VLKD checkpoints for the commands."""

import torch
from transformers import AutoConfig

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor


def load_vlkd(name: str, option: str) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Model, in float32, and processor of a folder or Hub name.

    Raises:
        ValueError: `name` is no VLKD checkpoint; the message names the `option` that gave it.
    """
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "vlkd":  # transformers would make a VLKD model of random weights
            raise ValueError(f"it holds a model of type '{kind}'.")
        model = VLKDForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
        return model, VLKDProcessor.from_pretrained(name)
    except Exception as error:  # each library has its own kinds for a broken file
        reason = " ".join(str(error).split("\n")[:2])  # a few span lines: what, and which value
        raise ValueError(f"{option}: '{name}' is no VLKD checkpoint that can be read: {reason}") from error
