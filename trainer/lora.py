"""LoRA on BART: train a small adapter instead of all of BART's weights."""

from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

TARGETS = r"language_model\..*\.(q_proj|v_proj)"  # only BART's: CLIP has layers with the same names
CLIP = r"(vision_model|visual_projection)(\..*)?"  # frozen
PROJECTIONS = ["text_projection", "image_projection"]  # W_e and W_d are small: train them in full


def lora_config(rank: int = 16, **options: Any) -> LoraConfig:
    """A `LoraConfig` for the query and value projections of BART, changed by `options`.

    Other `target_modules`, such as `"all-linear"`, exclude CLIP, which is frozen.
    """
    if "target_modules" in options:
        options = {"exclude_modules": CLIP, **options}
    return LoraConfig(
        **{"r": rank, "lora_alpha": 2 * rank, "target_modules": TARGETS, "modules_to_save": PROJECTIONS, **options}
    )


def add_lora(model: PreTrainedModel, rank: int = 16) -> PeftModel:
    """The model with a LoRA adapter; only the adapter, W_e and W_d are trained.

    Raises:
        ValueError: the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}; set it to 1 or more, or leave it unset for no adapter.")
    return get_peft_model(model, lora_config(rank))
