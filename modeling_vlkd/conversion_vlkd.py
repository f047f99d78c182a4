"""Two checkpoints become one model: CLIP's vision tower, all of BART, and the two maps between them."""

import os

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BartForConditionalGeneration,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration_vlkd import VLKDConfig


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
    """Builds a `model_class` of two checkpoints; see `VLKDForConditionalGeneration.from_vision_text_pretrained`."""
    if projector_init not in ("pinv", "random"):
        raise ValueError(f"`projector_init`={projector_init!r} is unknown; choose one of pinv, random.")
    check_checkpoint("clip", clip, "clip")
    check_checkpoint("bart", bart, "bart")
    vision = _load(CLIPModel, "clip", clip, dtype)
    language = _load(BartForConditionalGeneration, "bart", bart, dtype)

    config = VLKDConfig(
        vision_config=vision.config.vision_config,
        text_config=language.config,
        projection_dim=vision.config.projection_dim,
        logit_scale_init_value=vision.logit_scale.item(),
        mask_token_id=_mask_token_id(bart),
        base_models=_hub_names(clip, bart),
        **options,
    )
    with torch.device("meta"):  # every part is set below, so nothing is drawn at random first
        model = model_class(config)
    model.vision_model = vision.vision_model
    model.visual_projection = vision.visual_projection
    model.logit_scale = nn.Parameter(vision.logit_scale.detach().reshape(1))
    model.language_model = language
    model.generation_config = language.generation_config
    _start_maps(model, projector_init, seed, language.dtype)
    return model.eval()


def check_checkpoint(argument: str, path: str, model_type: str) -> PreTrainedConfig:
    """
    The config at `path`.

    Raises:
        ValueError: there is none, or it is not of `model_type`.
    """
    kind = {"clip": "CLIPModel", "bart": "BartForConditionalGeneration"}[model_type]
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`{argument}`={str(path)!r} is no checkpoint that can be read: give the Hub name or the folder of a "
            f"{kind}. ({error})"
        ) from error
    if config.model_type != model_type:
        raise ValueError(
            f"`{argument}`={str(path)!r} is a checkpoint of type {config.model_type!r}, not {model_type!r}: give the "
            f"Hub name or the folder of a {kind}."
        )
    return config


def _load(model_class: type[PreTrainedModel], argument: str, path: str, dtype) -> PreTrainedModel:
    try:
        return model_class.from_pretrained(path, dtype=dtype)
    except OSError as error:
        raise ValueError(
            f"`{argument}`={str(path)!r} has a config but no weights that can be read: give the Hub name or the "
            f"folder of a complete {model_class.__name__}. ({error})"
        ) from error


def _hub_names(clip: str, bart: str) -> list[str] | None:
    """The two names, where both are the Hub's: a local folder's name tells nobody anything."""
    return None if os.path.isdir(clip) or os.path.isdir(bart) else [clip, bart]


def _mask_token_id(bart: str) -> int | None:
    """The tokenizer's <mask>; None, which means BART's own place for it, where the checkpoint has no tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(bart).mask_token_id
    except (OSError, ValueError):
        return None


def _start_maps(model: PreTrainedModel, projector_init: str, seed: int, dtype: torch.dtype) -> None:
    """W_e orthogonal; W_d its pseudo-inverse, or random. Drawn on the CPU in float32, whatever the model's dtype."""
    generator = torch.Generator().manual_seed(seed)
    w_e = torch.empty(model.text_projection.weight.shape)  # (d_j, d_model)
    nn.init.orthogonal_(w_e, generator=generator)
    model.text_projection.weight = nn.Parameter(w_e.to(dtype))

    model.image_projection.to_empty(device="cpu").to(dtype)
    layers = [module for module in model.image_projection.modules() if isinstance(module, nn.Linear)]
    if projector_init == "random":
        weights = [torch.randn(x.weight.shape, generator=generator) * x.in_features**-0.5 for x in layers]
    else:
        weights = _as_linear_map(torch.linalg.pinv(w_e), layers)
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()


def _as_linear_map(w_d: torch.Tensor, layers: list[nn.Linear]) -> list[torch.Tensor]:
    """
    Weights with which the projector starts as the linear map `w_d` (d_model, d_j).

    Two layers can do it exactly, because gelu(z) - gelu(-z) = z: the hidden layer holds z and -z.
    """
    width, hidden = len(w_d), layers[0].out_features
    if layers[-1].out_features != width:
        raise ValueError(
            f"`image_token_expansion`={layers[-1].out_features // width}: several vectors of one token cannot start "
            "as the pseudo-inverse, for they would stay equal; use projector_init='random'."
        )
    if len(layers) == 1:
        return [w_d]
    if hidden != 2 * width:
        raise ValueError(
            f"`image_projector_hidden_size`={hidden} cannot start as the pseudo-inverse; set it to twice BART's width "
            f"({2 * width}), or use projector_init='random'."
        )
    identity = torch.eye(width)
    return [torch.cat([w_d, -w_d]), torch.cat([identity, -identity], dim=1)]
