"""Floating point operations (FLOP) of a training step, counted by torch on the meta device: shapes only, no weights.

A multiplication and an addition count as two operations. torch counts matrix products and convolutions, but not
elementwise operations, softmax, normalization and embedding look-ups. The losses and the optimizer are not counted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModelWithProjection, PreTrainedModel

from trainer.arguments import LOSS_WEIGHTS
from trainer.data.collator import ITDD_EVERY


def step_flops(model: PreTrainedModel, teacher: CLIPTextModelWithProjection, args: Any) -> dict[str, int]:
    """FLOP of one image and its caption in a training step, by part.

    The caption has `caption_tokens` tokens and no padding; the corrupted caption counts with the same length.
    Activation checkpointing, if the model has it enabled, is part of the backward pass.

    Args:
        model: the model to train, with eager attention, since torch does not count every kernel of sdpa.
        teacher: CLIP's text tower on the same device, with eager attention.
        args: the options of `vlkd train` and `caption_tokens`.
    """
    tokens, size = min(args.caption_tokens, args.max_text_length), model.config.vision_config.image_size
    ids = torch.zeros(ITDD_EVERY, tokens, dtype=torch.long, device=model.device)
    teacher_tokens = min(args.caption_tokens, teacher.config.max_position_embeddings)
    teacher_ids = torch.zeros(ITDD_EVERY, teacher_tokens, dtype=torch.long, device=model.device)
    pixels = torch.zeros(ITDD_EVERY, 3, size, size, device=model.device)
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "caption_input_ids": ids}
    parts = {}
    image = _count(parts, "vision tower", lambda: model.get_image_features(pixels, return_dict=True))
    _count(parts, "teacher", lambda: teacher(input_ids=teacher_ids))
    if args.itdd_weight:
        inputs["itdd_decoder_input_ids"] = one = ids[:1]
        _count(parts, "ITDD teacher", lambda: model.language_model.model(one, decoder_input_ids=one, use_cache=False))
    if args.contrastive_chunk_size and args.contrastive_chunk_size < args.per_device_train_batch_size:
        _count(parts, "contrastive chunks", lambda: model.get_text_features(ids))
    inputs["image_features"] = image.last_hidden_state
    output = _count(parts, "student forward", lambda: model(**inputs, use_cache=False))
    _count(parts, "student backward", _objective(output, args).backward)
    return parts


def _objective(output: Any, args: Any) -> torch.Tensor:
    """A scalar that depends on the same outputs as the weighted losses, and so has the same backward pass."""
    outputs = {
        "ttdm_weight": [output.text_embeds],
        "itcl_weight": [output.text_embeds],
        "icti_weight": [output.logits],
        "itdd_weight": output.itdd_hidden_states,
    }
    return sum(part.sum() for name in LOSS_WEIGHTS if getattr(args, name) for part in outputs[name])


def _count(parts: dict[str, int], name: str, function: Callable[[], Any]) -> Any:
    """Run `function` on `ITDD_EVERY` images, store the FLOP of one in `parts[name]` and return the result."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    parts[name] = counter.get_total_flops() // ITDD_EVERY
    return result
