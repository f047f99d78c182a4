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
    PreTrainedTokenizerBase,
)

from .configuration_vlkd import VLKDConfig
from .generation_vlkd import as_plain_dict
from .loading_vlkd import check_whole, read_weights
from .processing_vlkd import check_tokenizer, has_vocabulary


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
    clip_config, bart_config = check_checkpoint("clip", clip, "clip"), check_checkpoint("bart", bart, "bart")
    tokenizer = _tokenizer(bart)
    options = {
        "projection_dim": clip_config.projection_dim,
        "mask_token_id": None if tokenizer is None else tokenizer.mask_token_id,
        "base_models": _hub_names(clip, bart),
        **options,
    }
    # All that the configs can tell is checked before the weights, which may be gigabytes, are loaded.
    config = VLKDConfig(vision_config=clip_config.vision_config, text_config=bart_config, **options)
    if tokenizer is not None:
        check_tokenizer(tokenizer, bart_config)
    _check_start(config, projector_init)

    vision = load_part(CLIPModel, "clip", clip, dtype)
    language = load_part(BartForConditionalGeneration, "bart", bart, dtype)
    dtype = torch.promote_types(vision.dtype, language.dtype)  # "auto" may have found two
    vision, language = vision.to(dtype), language.to(dtype)
    config = VLKDConfig(
        vision_config=vision.config.vision_config,
        text_config=language.config,
        text_generation_config=as_plain_dict(language.generation_config),
        logit_scale_init_value=vision.logit_scale.item(),
        **options,
    )
    with torch.device("meta"):  # every part is set below, so nothing is drawn at random first
        model = model_class(config)
    model.vision_model = vision.vision_model
    model.visual_projection = vision.visual_projection
    model.logit_scale = nn.Parameter(vision.logit_scale.detach().reshape(1))
    model.language_model = language
    _start_maps(model, projector_init, seed, dtype)
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
    except Exception as error:  # for a value of a wrong type, whatever first stumbles over it
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


def load_part(
    model_class: type[PreTrainedModel], argument: str, path: str, dtype: torch.dtype | str
) -> PreTrainedModel:
    """
    The CLIP or BART at `path`.

    Raises:
        ValueError: its weights cannot be read, or some are missing or of another shape; it names the `argument`.
    """
    try:
        model, info = read_weights(model_class.from_pretrained, path, dtype=dtype)
        check_whole(path, info)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`{argument}`={str(path)!r} has a config but not the weights of a {model_class.__name__}; give the Hub "
            f"name or the folder of a complete one. {error}"
        ) from error
    return model


def _hub_names(clip: str, bart: str) -> list[str] | None:
    """The two names, where both are the Hub's: a local folder's name tells nobody anything."""
    return None if os.path.isdir(clip) or os.path.isdir(bart) else [clip, bart]


def _tokenizer(bart: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer at `bart`; None where there is none, of which transformers makes one without a vocabulary."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(bart)
    except Exception:  # the processor, which cannot do without one, says what is wrong with it
        return None
    return tokenizer if has_vocabulary(tokenizer) else None


def _check_start(config: VLKDConfig, projector_init: str) -> None:
    """Raises a ValueError for a projector that cannot start as `projector_init` says."""
    if projector_init not in ("pinv", "random"):
        raise ValueError(f"`projector_init`={projector_init!r} is unknown; choose one of pinv, random.")
    width, hidden = config.text_config.d_model, config.image_projector_hidden_size
    if projector_init == "pinv" and config.image_token_expansion != 1:
        raise ValueError(
            f"`image_token_expansion`={config.image_token_expansion}: several vectors of one token cannot start as "
            "the pseudo-inverse, because they would stay equal; use projector_init='random'."
        )
    if projector_init == "pinv" and config.image_projector == "mlp" and hidden != 2 * width:
        raise ValueError(
            f"`image_projector_hidden_size`={hidden} cannot start as the pseudo-inverse; set it to twice BART's width "
            f"({2 * width}), or use projector_init='random'."
        )


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
    if len(layers) == 1:
        return [w_d]
    identity = torch.eye(len(w_d))
    return [torch.cat([w_d, -w_d]), torch.cat([identity, -identity], dim=1)]
