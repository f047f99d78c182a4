"""LoRA: train a small adapter instead of all of BART's weights."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

TARGETS = r"language_model\..*\.(q_proj|v_proj)"  # only BART's: CLIP has layers with the same names
CLIP = r"(vision_model|visual_projection)(\..*)?"  # frozen
PROJECTIONS = ["text_projection", "image_projection"]  # W_e and W_d are small: train them in full


def lora_config(**options: Any) -> LoraConfig:
    """A `LoraConfig` for BART's queries and values, with rank 16 and alpha 32.

    CLIP, which is frozen, is excluded from other `target_modules` such as `"all-linear"`.

    Args:
        **options: arguments of `LoraConfig`.
    """
    if "target_modules" in options:
        options = {"exclude_modules": CLIP, **options}
    return LoraConfig(
        **{"r": 16, "lora_alpha": 32, "target_modules": TARGETS, "modules_to_save": PROJECTIONS, **options}
    )


def add_lora(model: PreTrainedModel, **options: Any) -> PeftModel:
    """The model with a LoRA adapter. Only the adapter, W_e and W_d are trainable.

    Args:
        model: the model to adapt.
        **options: arguments of `LoraConfig`.
    """
    return get_peft_model(model, lora_config(**options))
