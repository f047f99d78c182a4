"""Configuration of VLKD: a frozen CLIP vision tower and a BART, joined by two projections."""

import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import BartConfig, CLIPVisionConfig, PreTrainedConfig

CHOICES = {
    "image_tokens": ("all", "patch", "pooled"),
    "image_projector": ("linear", "mlp"),
}

_GENERATOR = "modeling_vlkd.VLKDForConditionalGeneration"
_DUAL_ENCODER = "modeling_vlkd.VLKDModel"

# Saved in config.json, so that `trust_remote_code=True` finds the classes and pipelines.
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
    task: {"impl": f"pipeline_vlkd.{pipeline}", "pt": ["AutoModelForImageTextToText"], "type": "multimodal"}
    for task, pipeline in (
        ("image-to-text", "VLKDImageTextToTextPipeline"),
        ("image-text-to-text", "VLKDImageTextToTextPipeline"),
        ("visual-question-answering", "VLKDVisualQuestionAnsweringPipeline"),
        ("vqa", "VLKDVisualQuestionAnsweringPipeline"),
    )
}

# transformers imports remote code under this package name.
IS_REMOTE_CODE = __name__.startswith("transformers_modules.")


def copy_code(target: str | os.PathLike, origin: str | os.PathLike = "") -> None:
    """
    Copies the package's Python files into a checkpoint's folder, so that it loads without the package.

    Args:
        target: Folder of the checkpoint.
        origin: Folder that a remote-code model was loaded from; transformers' module cache lacks some of its files.
            Nothing is copied for a Hub name, because the saved `auto_map` then points to the Hub.
    """
    source = Path(origin) if IS_REMOTE_CODE else Path(__file__).parent
    if not (source / "configuration_vlkd.py").is_file() or source.resolve() == Path(target).resolve():
        return
    for file in sorted(source.glob("*.py")):
        shutil.copy(file, target)


@contextmanager
def value_errors(summary: str, keep: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Re-raises any error as a ValueError that starts with `summary`, except errors of the classes `keep`."""
    try:
        yield
    except keep:
        raise
    except Exception as error:
        raise ValueError(f"{summary}: {textwrap.shorten(str(error), 700)}") from error


class VLKDConfig(PreTrainedConfig):
    """
    Configuration of [`VLKDModel`] and [`VLKDForConditionalGeneration`].

    Args:
        vision_config (`CLIPVisionConfig` or `dict`): Configuration of the frozen vision tower.
        text_config (`BartConfig` or `dict`): Configuration of the language model.
        projection_dim (`int`): Dimension d_j of CLIP's joint space. Defaults to the vision config's `projection_dim`.
        image_tokens (`str`): CLIP tokens that the decoder attends to: `"all"` (class token and patches), `"patch"`
            (patches only) or `"pooled"` (class token only).
        image_projector (`str`): Map from the joint space to BART's width: `"mlp"` (two layers with a GELU in
            between) or `"linear"` (as in the paper).
        image_projector_hidden_size (`int`): Width of the MLP's hidden layer. Defaults to twice `d_model`.
        logit_scale_init_value (`float`): Logarithm of CLIP's temperature factor.
        mask_token_id (`int`): Id of `<mask>`. Defaults to the last id of the vocabulary, as in BART.
        default_prompt_ids (`list[int]`): Prompt of an image without a text. Defaults to `<s><mask></s>`.
        text_generation_config (`dict`): Generation defaults published with the BART checkpoint, used for text without
            an image and by `to_bart()`. With an image, `model.generation_config` applies.
        base_models (`list[str]`): Hub names of the two base checkpoints, for the model card.

    Raises:
        ValueError: A sub-config belongs to another kind of model, or a value is unknown or out of range.
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
    image_projector: str = "mlp"
    image_projector_hidden_size: int | None = None
    logit_scale_init_value: float = 2.6592
    mask_token_id: int | None = None
    default_prompt_ids: list[int] | None = None
    text_generation_config: dict | None = None
    base_models: list[str] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if value is None or isinstance(value, dict):
                value = config_class(**(value or {}))
            if getattr(value, "model_type", None) != config_class.model_type:
                found = getattr(value, "model_type", value)
                raise ValueError(f"`{name}` must be a {config_class.__name__} or its dict, but is {found!r}.")
            setattr(self, name, value)
        text = self.text_config
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim
        if self.image_projector_hidden_size is None:
            self.image_projector_hidden_size = 2 * text.d_model
        if self.mask_token_id is None:
            self.mask_token_id = text.vocab_size - 1
        if self.default_prompt_ids is None:
            self.default_prompt_ids = [text.bos_token_id, self.mask_token_id, text.eos_token_id]
        self.vision_config.projection_dim = self.projection_dim
        self.tie_word_embeddings = text.tie_word_embeddings
        self._validate()
        if not IS_REMOTE_CODE:  # `to_dict` adds these two
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def _validate(self) -> None:
        """Raises a ValueError for an unknown choice, or a value that does not fit the vocabulary."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}`={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}.")
        if not 0 <= self.mask_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`mask_token_id`={self.mask_token_id} is outside the vocabulary of {self.text_config.vocab_size}."
            )
        ids = self.default_prompt_ids
        if not isinstance(ids, (list, tuple)) or ids.count(self.mask_token_id) != 1:
            raise ValueError(
                f"`default_prompt_ids`={ids} must contain `mask_token_id`={self.mask_token_id} exactly once."
            )

    @property
    def num_patches(self) -> int:
        """Number of patches that CLIP divides an image into."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "VLKDConfig":
        """Same as `PreTrainedConfig.from_pretrained`; raises a ValueError that names an invalid value."""
        with value_errors(f"Invalid config.json in '{pretrained_model_name_or_path}'"):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "VLKDConfig":
        """Same as `PreTrainedConfig.from_dict`; raises a ValueError for another `model_type` or no sub-config."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"`model_type`={model_type!r} is not a VLKD model; load it with its own class.")
        for name in cls.sub_configs:
            if not config_dict.get(name):  # a default would have other sizes
                raise ValueError(f"`{name}` is missing; write config.json with `save_pretrained`.")
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Same as `PreTrainedConfig.to_dict`, with the remote-code classes and pipelines."""
        output = super().to_dict()
        for name in self.sub_configs:
            output[name]["_name_or_path"] = ""  # may be a local path
        if not IS_REMOTE_CODE:
            output.update(auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Writes config.json and the Python files that its `auto_map` names."""
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory, origin=self.name_or_path)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
