"""Configuration of VLKD: a frozen CLIP vision tower and a BART, joined by two linear maps."""

import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

from transformers import BartConfig, CLIPVisionConfig, GenerationConfig, PreTrainedConfig

IMAGE_TOKENS = ("all", "patch", "pooled")
IMAGE_PROJECTORS = ("linear", "mlp")
PATCH_ATTENTIONS = ("global", "self")

# A larger number is a mistake, and would fill the memory before any weight is looked at.
LIMITS = {
    "vision_config": {
        "hidden_size": 2**16,
        "intermediate_size": 2**18,
        "num_hidden_layers": 2**10,
        "num_attention_heads": 2**10,
        "num_channels": 2**10,
        "image_size": 2**12,
        "patch_size": 2**12,
    },
    "text_config": {
        "d_model": 2**16,
        "encoder_ffn_dim": 2**18,
        "decoder_ffn_dim": 2**18,
        "encoder_layers": 2**10,
        "decoder_layers": 2**10,
        "encoder_attention_heads": 2**10,
        "decoder_attention_heads": 2**10,
        "vocab_size": 2**20,
        "max_position_embeddings": 2**20,
    },
}
OWN_LIMITS = {"projection_dim": 2**16, "image_projector_hidden_size": 2**20, "image_token_expansion": 2**10}

_GENERATOR = "modeling_vlkd.VLKDForConditionalGeneration"
_DUAL_ENCODER = "modeling_vlkd.VLKDModel"

# What a saved folder says about itself, so that `trust_remote_code=True` finds its classes and pipelines.
AUTO_MAP = {
    "AutoConfig": "configuration_vlkd.VLKDConfig",
    "AutoModel": _DUAL_ENCODER,
    "AutoModelForZeroShotImageClassification": _DUAL_ENCODER,
    "AutoModelForImageTextToText": _GENERATOR,
    "AutoModelForMultimodalLM": _GENERATOR,
    "AutoModelForSeq2SeqLM": _GENERATOR,
    "AutoModelForVisualQuestionAnswering": _GENERATOR,
    "AutoProcessor": "processing_vlkd.VLKDProcessor",
}
CUSTOM_PIPELINES = {
    task: {"impl": f"pipeline_vlkd.{pipeline}", "pt": [auto_class], "type": "multimodal"}
    for task, pipeline, auto_class in (
        ("image-to-text", "VLKDImageTextToTextPipeline", "AutoModelForImageTextToText"),
        ("image-text-to-text", "VLKDImageTextToTextPipeline", "AutoModelForImageTextToText"),
        ("visual-question-answering", "VLKDVisualQuestionAnsweringPipeline", "AutoModelForImageTextToText"),
        ("vqa", "VLKDVisualQuestionAnsweringPipeline", "AutoModelForImageTextToText"),
        (
            "zero-shot-image-classification",
            "VLKDZeroShotImageClassificationPipeline",
            "AutoModelForZeroShotImageClassification",
        ),
    )
}

# Code that transformers loaded from a model folder lives in this namespace; the installed package does not.
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")


def copy_code(target: str | os.PathLike, origin: str | os.PathLike = "") -> None:
    """
    Copies the package's Python files beside a checkpoint, so that the folder loads without the package.

    Args:
        target: folder of the checkpoint.
        origin: folder a remote-code model was loaded from; transformers caches only those files it needed, so the
            complete set is there. A Hub name is left alone: its `auto_map` points back to the Hub.
    """
    source = Path(origin) if IS_REMOTE_CODE else Path(__file__).parent
    if not (source / "configuration_vlkd.py").is_file() or source.resolve() == Path(target).resolve():
        return
    for file in sorted(source.glob("*.py")):
        shutil.copy(file, target)


class VLKDConfig(PreTrainedConfig):
    """
    Configuration of [`VLKDModel`] and [`VLKDForConditionalGeneration`].

    Args:
        vision_config (`CLIPVisionConfig` or `dict`): the frozen vision tower.
        text_config (`BartConfig` or `dict`): the language model.
        projection_dim (`int`): dimension d_j of CLIP's joint space. Default: the vision config's `projection_dim`.
        image_tokens (`str`): which of CLIP's tokens the decoder sees: `"all"` (class token and patches), `"patch"`
            (patches alone) or `"pooled"` (class token alone).
        image_projector (`str`): the map from the joint space to BART's width: `"linear"` (the paper's) or `"mlp"`
            (two layers with a GELU between).
        image_projector_hidden_size (`int`): width of the MLP's hidden layer. Default: BART's `d_model`, twice or as
            often as `image_token_expansion` says, if that is more.
        image_token_expansion (`int`): how many vectors the projector makes of each token for the decoder to see (1 is
            the paper's): BART has a state for every word, and it takes several words to tell what a patch shows.
        patch_attention (`str`): in CLIP's last layer a patch attends to all tokens (`"global"`, as in CLIP) or to
            itself alone (`"self"`), which keeps out of it what others show. The class token is CLIP's either way.
        prompt_in_encoder (`bool`): beside an image, whether BART's encoder reads the whole prompt, or only what stands
            from `<mask>` on: what stands before it is the decoder's start either way.
        logit_scale_init_value (`float`): logarithm of CLIP's temperature factor.
        mask_token_id (`int`): id of `<mask>`. Default: the last id of the vocabulary, where BART has it.
        default_prompt_ids (`list[int]`): the prompt of an image that comes without one. Default: `<s><mask></s>`.
        text_generation_config (`dict`): the generation defaults that the BART checkpoint was published with: for text
            without an image, and for `to_bart()`. With an image, `model.generation_config` holds the defaults.
        base_models (`list[str]`): Hub names of the two checkpoints it was made of, for the model card.

    Raises:
        ValueError: a choice is none of the names above, or an id is not in the vocabulary.
    """

    model_type = "vlkd"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": BartConfig}
    keys_to_ignore_at_inference = [
        "past_key_values",
        "encoder_last_hidden_state",
        "text_model_output",
        "vision_model_output",
    ]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    image_tokens: str = "all"
    image_projector: str = "linear"
    image_projector_hidden_size: int | None = None
    image_token_expansion: int = 1
    patch_attention: str = "global"
    prompt_in_encoder: bool = True
    logit_scale_init_value: float = 2.6592
    mask_token_id: int | None = None
    default_prompt_ids: list[int] | None = None
    text_generation_config: dict | None = None
    base_models: list[str] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            setattr(self, name, _sub_config(name, getattr(self, name), config_class))
        text = self.text_config
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim
        if self.image_projector_hidden_size is None:
            self.image_projector_hidden_size = max(2, self.image_token_expansion) * text.d_model
        if self.mask_token_id is None:
            self.mask_token_id = text.vocab_size - 1
        if self.default_prompt_ids is None:
            self.default_prompt_ids = [text.bos_token_id, self.mask_token_id, text.eos_token_id]
        self.vision_config.projection_dim = self.projection_dim
        self.tie_word_embeddings = text.tie_word_embeddings
        self._check()
        if not IS_REMOTE_CODE:  # the package uses its own classes and pipelines; `to_dict` puts these two back
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @property
    def num_patches(self) -> int:
        """Number of CLIP's patches: (image_size / patch_size)²."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    def _check(self) -> None:
        """Raises a ValueError for a size, a choice or an id that the model could not follow."""
        for part, limits in LIMITS.items():
            _check_sizes(getattr(self, part), limits, f"{part}.")
        _check_sizes(self, OWN_LIMITS)
        for name, choices in (
            ("image_tokens", IMAGE_TOKENS),
            ("image_projector", IMAGE_PROJECTORS),
            ("patch_attention", PATCH_ATTENTIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}`={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}.")
        if not 0 <= self.mask_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`mask_token_id`={self.mask_token_id} is outside the language model's vocabulary of "
                f"{self.text_config.vocab_size} tokens; give a BART whose embeddings hold <mask>, as bart-base and "
                "bart-large do."
            )
        GenerationConfig.from_dict(self.text_generation_config or {})  # raises for a wrong value
        ids = self.default_prompt_ids
        if not isinstance(ids, (list, tuple)) or list(ids).count(self.mask_token_id) != 1:
            raise ValueError(
                f"`default_prompt_ids`={self.default_prompt_ids} must hold `mask_token_id`={self.mask_token_id} once."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "VLKDConfig":
        """As every config's.

        Raises:
            OSError: there is no config.json, or it is no JSON.
            ValueError: what it holds makes no VLKDConfig; the message names it.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except OSError:
            raise
        except Exception as error:  # for a value of a wrong type, whatever first stumbles over it
            reason = textwrap.shorten(str(error), 500)
            raise ValueError(f"config.json of '{pretrained_model_name_or_path}': {reason}") from error

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "VLKDConfig":
        """As every config's.

        Raises:
            ValueError: the dict is another kind of model's, whose weights would be of no use here.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(f"`model_type`={kind!r} in config.json, which is no VLKD; load it by its own class.")
        for name in cls.sub_configs:
            if not config_dict.get(name):  # else a model of CLIP's or BART's default size would be made
                raise ValueError(f"`{name}` is missing in config.json; write it by `save_pretrained`.")
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As every config's, with the map of remote-code classes and pipelines."""
        output = super().to_dict()
        for name in self.sub_configs:
            output[name]["_name_or_path"] = ""  # not where the two checkpoints lay on the machine that joined them
        if not IS_REMOTE_CODE:
            output.update(auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Writes config.json and, beside it, the Python files that `auto_map` names."""
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory, origin=self.name_or_path)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _check_sizes(config: PreTrainedConfig, limits: dict[str, int], prefix: str = "") -> None:
    for name, limit in limits.items():
        value = getattr(config, name)
        if isinstance(value, int) and not 1 <= value <= limit:
            raise ValueError(f"`{prefix}{name}`={value} must be 1 to {limit}.")


def _sub_config(name: str, value: Any, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    """`value`, a config, its dict or None, as a config; a ValueError, if it is another kind of model's."""
    if isinstance(value, PreTrainedConfig):
        kind = value.model_type
    elif value is None or isinstance(value, dict):
        kind = (value or {}).get("model_type", config_class.model_type)
    else:
        raise ValueError(f"`{name}`={value!r} is no config; give a {config_class.__name__} or its dict.")
    if kind != config_class.model_type:
        raise ValueError(f"`{name}` has `model_type`={kind!r}; VLKD needs a {config_class.model_type!r}.")
    return value if isinstance(value, PreTrainedConfig) else config_class(**(value or {}))
