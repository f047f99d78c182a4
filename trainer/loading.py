"""Loads VLKD checkpoints for the commands."""

import argparse

import torch
from peft import PeftConfig, PeftModel
from transformers.utils import find_adapter_config_file

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from trainer.data import is_missing_path
from trainer.precision import fastest_dtype, find_device

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, which `read_device_options` reads."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: the GPU, if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 where the device is fast at it, else float32"
    )


def read_device_options(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that the options choose.

    `auto` chooses bfloat16 where the device multiplies matrices faster in it. That suits models of real size; one as
    small as the microworld's can be slower in it.

    Raises:
        ValueError: there is no such device.
    """
    device = find_device(args.device)
    return device, fastest_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)


def load_vlkd(
    name: str, option: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Model, on `device` and in `dtype`, and processor of a folder or Hub name.

    A PEFT adapter is merged into its base model.

    Raises:
        ValueError: `name` is no VLKD checkpoint; the message names the `option` that gave it.
    """
    if is_missing_path(name):
        raise ValueError(f"{option}: '{name}' is no VLKD checkpoint: it does not exist.")
    adapter = None
    try:
        if find_adapter_config_file(name):
            adapter, name = name, PeftConfig.from_pretrained(name).base_model_name_or_path
        config = VLKDConfig.from_pretrained(name)  # of no other type: transformers would make random weights of it
        model = VLKDForConditionalGeneration.from_pretrained(name, config=config, dtype=dtype)
        processor = VLKDProcessor.from_pretrained(name)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        words, known = len(processor.tokenizer), config.text_config.vocab_size
        if words > known:
            raise ValueError(f"its tokenizer knows {words} tokens, the model {known}.")
    except Exception as error:  # each library has its own kinds for a broken file
        reason = " ".join(str(error).split("\n")[:2])  # a few span lines: what, and which value
        of = "" if adapter is None else f", the base model of the adapter '{adapter}',"
        raise ValueError(f"{option}: '{name}'{of} is no VLKD checkpoint that can be read: {reason}") from error
    return model.to(device), processor
