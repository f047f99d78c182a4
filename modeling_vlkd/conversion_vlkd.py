"""Builds a VLKD from two checkpoints: CLIP's vision tower, all of BART, and the two maps between them."""

import os

import torch
from torch import nn
from transformers import (
    AutoConfig,
    BartForConditionalGeneration,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_vlkd import VLKDConfig, value_errors
from .generation_vlkd import as_plain_dict
from .loading_vlkd import check_weights, load_with_info
from .processing_vlkd import load_tokenizer


def join_checkpoints(
    model_class: type[PreTrainedModel],
    clip: str,
    bart: str,
    options: dict,
    *,
    projector_init: str,
    seed: int,
    dtype: torch.dtype | str,
) -> PreTrainedModel:
    """See `VLKDForConditionalGeneration.from_vision_text_pretrained`."""
    clip_config, bart_config = check_checkpoint("clip", clip, "clip"), check_checkpoint("bart", bart, "bart")
    options = {
        "projection_dim": clip_config.projection_dim,
        "mask_token_id": load_tokenizer(bart).mask_token_id,
        "base_models": None if os.path.isdir(clip) or os.path.isdir(bart) else [clip, bart],  # Hub names only
        **options,
    }
    # Everything is checked before the weights, which may be gigabytes, are loaded.
    config = VLKDConfig(vision_config=clip_config.vision_config, text_config=bart_config, **options)
    if projector_init not in ("pinv", "random"):
        raise ValueError(f"`projector_init`={projector_init!r} is unknown; choose one of pinv, random.")

    vision = load_part(CLIPModel, "clip", clip, dtype)
    language = load_part(BartForConditionalGeneration, "bart", bart, dtype)
    dtype = torch.promote_types(vision.dtype, language.dtype)  # dtype="auto" may give two
    vision, language = vision.to(dtype), language.to(dtype)
    config = VLKDConfig(
        vision_config=vision.config.vision_config,
        text_config=language.config,
        text_generation_config=as_plain_dict(language.generation_config),
        logit_scale_init_value=vision.logit_scale.item(),
        **options,
    )
    with torch.device("meta"):  # all weights are replaced below
        model = model_class(config)
    model.vision_model = vision.vision_model
    model.visual_projection = vision.visual_projection
    model.logit_scale = nn.Parameter(vision.logit_scale.detach().reshape(1))
    model.language_model = language
    _initialize_maps(model, projector_init, seed, dtype)
    return model.eval()


def check_checkpoint(argument: str, path: str, *model_types: str) -> PreTrainedConfig:
    """Returns the config at `path`; raises a ValueError if there is none, or none of these types."""
    with value_errors(
        f"`{argument}`={str(path)!r} is not a readable checkpoint; give a Hub name or a folder", keep=()
    ):
        config = AutoConfig.from_pretrained(path)
    if config.model_type not in model_types:
        known = " or ".join(model_types)
        raise ValueError(f"`{argument}`={str(path)!r} is of type {config.model_type!r}; give a {known} checkpoint.")
    return config


def load_part(
    model_class: type[PreTrainedModel], argument: str, path: str, dtype: torch.dtype | str
) -> PreTrainedModel:
    """Loads the CLIP or BART at `path`; raises a ValueError if weights are missing, unreadable or of another shape."""
    summary = f"`{argument}`={str(path)!r} has no complete weights of a {model_class.__name__}"
    with value_errors(summary, keep=(MemoryError, torch.OutOfMemoryError)):
        model, info = load_with_info(model_class.from_pretrained, path, dtype=dtype)
        check_weights(path, info)
    return model


def _initialize_maps(model: PreTrainedModel, projector_init: str, seed: int, dtype: torch.dtype) -> None:
    """Initializes W_e orthogonally, and W_d as its pseudo-inverse or at random, on the CPU in float32."""
    generator = torch.Generator().manual_seed(seed)
    w_e = torch.empty(model.text_projection.weight.shape)  # (d_j, d_model)
    nn.init.orthogonal_(w_e, generator=generator)
    model.text_projection.weight = nn.Parameter(w_e.to(dtype))

    model.image_projection.to_empty(device="cpu").to(dtype)
    layers = [module for module in model.image_projection.modules() if isinstance(module, nn.Linear)]
    w_d = torch.linalg.pinv(w_e)  # (d_model, d_j)
    if projector_init == "random":
        weights = [torch.randn(x.weight.shape, generator=generator) * x.in_features**-0.5 for x in layers]
    elif len(layers) == 1:
        weights = [w_d]
    else:  # two layers compute W_d exactly: the hidden layer holds z and -z, and gelu(z) - gelu(-z) = z
        identity = torch.eye(len(w_d))
        weights = [torch.cat([w_d, -w_d]), torch.cat([identity, -identity], dim=1)]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()
