"""Configuration of VLKD: a frozen CLIP vision tower and a BART, joined by two linear maps."""

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import BartConfig, CLIPVisionConfig, PreTrainedConfig

IMAGE_TOKENS = ("all", "patch", "pooled")
IMAGE_PROJECTORS = ("linear", "mlp")

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
    task: {"impl": f"pipeline_vlkd.{pipeline}", "pt": ["AutoModelForImageTextToText"], "type": "multimodal"}
    for task, pipeline in {
        "image-to-text": "VLKDImageTextToTextPipeline",
        "image-text-to-text": "VLKDImageTextToTextPipeline",
        "visual-question-answering": "VLKDVisualQuestionAnsweringPipeline",
    }.items()
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
        image_projector_hidden_size (`int`): width of the MLP's hidden layer. Default: twice BART's `d_model`.
        logit_scale_init_value (`float`): logarithm of CLIP's temperature factor.
        mask_token_id (`int`): id of `<mask>`. Default: the last id of the vocabulary, where BART has it.
        default_prompt_ids (`list[int]`): the prompt of an image that comes without one. Default: `<s><mask></s>`.

    Raises:
        ValueError: `image_tokens` or `image_projector` is none of the names above, or an id is not in the vocabulary.
    """

    model_type = "vlkd"
    sub_configs = {"vision_config": CLIPVisionConfig, "text_config": BartConfig}
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int | None = None
    image_tokens: str = "all"
    image_projector: str = "linear"
    image_projector_hidden_size: int | None = None
    logit_scale_init_value: float = 2.6592
    mask_token_id: int | None = None
    default_prompt_ids: list[int] | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if not isinstance(value, PreTrainedConfig):
                setattr(self, name, config_class(**(value or {})))
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
        self._check()
        if not IS_REMOTE_CODE:  # the package uses its own classes and pipelines; `to_dict` puts these two back
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        """Raises a ValueError for a choice or an id that the model could not follow."""
        for name, choices in (("image_tokens", IMAGE_TOKENS), ("image_projector", IMAGE_PROJECTORS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}`={getattr(self, name)!r} is unknown; choose one of {', '.join(choices)}.")
        if not 0 <= self.mask_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`mask_token_id`={self.mask_token_id} is outside the language model's vocabulary of "
                f"{self.text_config.vocab_size} tokens; give a BART whose embeddings hold <mask>, as bart-base and "
                "bart-large do."
            )
        if self.default_prompt_ids.count(self.mask_token_id) != 1:
            raise ValueError(
                f"`default_prompt_ids`={self.default_prompt_ids} must hold `mask_token_id`={self.mask_token_id} once."
            )

    def to_dict(self) -> dict[str, Any]:
        """As every config's, with the map of remote-code classes and pipelines."""
        output = super().to_dict()
        for name in self.sub_configs:
            output[name].pop("_name_or_path", None)  # where the two checkpoints lay on the machine that joined them
        if not IS_REMOTE_CODE:
            output.update(auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Writes config.json and, beside it, the Python files that `auto_map` names."""
        os.makedirs(save_directory, exist_ok=True)
        copy_code(save_directory, origin=self.name_or_path)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
