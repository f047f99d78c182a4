"""
Like finetune.py, but trains only a LoRA adapter on BART and the two projections between BART and CLIP.

    python examples/lora.py --model my_vlkd --data my_images --output my_adapter
"""

from finetune import main

from trainer.lora import add_lora

if __name__ == "__main__":
    main(add_lora)
