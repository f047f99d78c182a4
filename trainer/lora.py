"""LoRA on BART: a few small matrices learn in the place of all its weights."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

TARGETS = r"language_model\..*\.(q_proj|v_proj)"  # of BART alone: CLIP has layers of the same names
CLIP = r"(vision_model|visual_projection)(\..*)?"  # frozen
MAPS = ["text_projection", "image_projection"]  # W_e and W_d are small, and learn whole


def lora_config(rank: int = 16, **options: Any) -> LoraConfig:
    """PEFT's, of an adapter on the queries and values of BART; `options` are those of `LoraConfig`.

    CLIP, which is frozen, is excluded from other `target_modules`, `"all-linear"` for one.
    """
    if "target_modules" in options:
        options = {"exclude_modules": CLIP, **options}
    return LoraConfig(
        **{"r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS, "modules_to_save": MAPS, **options}
    )


def add_lora(model: PreTrainedModel, rank: int = 16) -> PeftModel:
    """The model with an adapter, of which nothing learns but the adapter, W_e and W_d.

    Raises:
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}; it is 1 or more, or unset for no adapter.")
    return get_peft_model(model, lora_config(rank))
