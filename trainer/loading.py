"""Loads VLKD checkpoints for the commands."""

import torch
from peft import PeftConfig, PeftModel
from transformers.utils import find_adapter_config_file

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from trainer.data import is_missing_path


def load_vlkd(name: str, option: str) -> tuple[VLKDForConditionalGeneration, VLKDProcessor]:
    """Model, in float32, and processor of a folder or Hub name. A PEFT adapter is merged into its base model.

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
        model = VLKDForConditionalGeneration.from_pretrained(name, config=config, dtype=torch.float32)
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
    return model, processor
