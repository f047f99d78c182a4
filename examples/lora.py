"""
As finetune.py, but only a LoRA adapter on BART and the two maps between BART and CLIP learn.

    python examples/lora.py --model my_vlkd --data my_images --output my_adapter
"""

from dataclasses import replace

from finetune import main
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    target_modules=r"language_model\..*\.(q_proj|v_proj)",  # of BART alone: CLIP has layers of the same names
    modules_to_save=["text_projection", "image_projection"],  # W_e and W_d are small, and learn whole
)


def add_lora(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, replace(LORA))  # PEFT writes the model's name into it


if __name__ == "__main__":
    main(add_lora)
