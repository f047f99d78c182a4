"""
Exports a VLKD model with `torch.export`, and captions images with the exported programs.

    python examples/export.py --model my_vlkd --output my_programs --image photo.png

Writes three programs that run without this package: `image_encoder.pt2`, `prompt_encoder.pt2` and `decoder_step.pt2`.
Their batch size and numbers of tokens are dynamic.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from vlkd import VLKDForConditionalGeneration, VLKDProcessor


class ImageEncoder(nn.Module):
    """CLIP: (images, 3, height, width) -> every token (images, image_tokens, d_j), and the embedding (images, d_j)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.get_image_features(pixel_values, return_dict=True)
        return output.last_hidden_state, output.pooler_output


class PromptEncoder(nn.Module):
    """Image tokens and a prompt (batch, text_tokens) -> memory (batch, image_tokens + text_tokens, d_model)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, image_features: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model.encode_multimodal(input_ids, attention_mask, image_features=image_features)
        return output.last_hidden_state


class DecoderStep(nn.Module):
    """Memory, the prompt's mask and the words so far (batch, target_tokens) -> logits of the next (batch, vocab)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, memory: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
            return_dict=True,
        )
        return output.logits[:, -1]


@torch.no_grad()
def export_programs(model: PreTrainedModel, folder: str) -> None:
    """Write the three programs to `folder`."""
    model.eval()
    size = model.config.vision_config.image_size
    pixel_values = torch.zeros(2, 3, size, size)
    input_ids = torch.tensor([[0, 9, 9, model.config.mask_token_id, 2]] * 2)
    attention_mask = torch.ones_like(input_ids)
    features, _ = ImageEncoder(model)(pixel_values)
    memory = PromptEncoder(model)(features, input_ids, attention_mask)
    rows, tokens = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    programs = {
        "image_encoder": (ImageEncoder(model), (pixel_values,), (rows,)),
        "prompt_encoder": (PromptEncoder(model), (features, input_ids, attention_mask), (rows, tokens, tokens)),
        "decoder_step": (
            DecoderStep(model),
            (memory, attention_mask, input_ids[:, :3].clone()),
            (tokens, tokens, tokens),
        ),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (module, inputs, dynamic) in programs.items():
        program = torch.export.export(module, inputs, dynamic_shapes=dynamic)
        torch.export.save(program, Path(folder, f"{name}.pt2"))


@torch.no_grad()
def caption(folder: str, processor: VLKDProcessor, images: list, max_new_tokens: int = 40) -> list[str]:
    """Caption images with the programs in `folder`, by greedy decoding."""
    programs = {path.stem: torch.export.load(path).module() for path in Path(folder).glob("*.pt2")}
    batch, tokenizer = processor(images=images), processor.tokenizer
    features, _ = programs["image_encoder"](batch["pixel_values"])
    memory = programs["prompt_encoder"](features, batch["input_ids"], batch["attention_mask"])
    words = torch.tensor([[tokenizer.eos_token_id, tokenizer.bos_token_id]] * len(images))  # as BART's decoder starts
    ended = torch.zeros(len(images), dtype=torch.bool)
    for _ in range(max_new_tokens):
        word = programs["decoder_step"](memory, batch["attention_mask"], words).argmax(dim=-1)
        words = torch.cat([words, word.masked_fill(ended, tokenizer.pad_token_id).unsqueeze(1)], dim=1)
        ended |= word == tokenizer.eos_token_id
        if ended.all():
            break
    return processor.post_process_generation(words, batch["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub name or folder of a VLKD model")
    parser.add_argument("--output", required=True, help="output folder")
    parser.add_argument("--image", nargs="*", default=[], help="images to caption with the programs")
    given = parser.parse_args()
    export_programs(VLKDForConditionalGeneration.from_pretrained(given.model), given.output)
    if given.image:
        print("\n".join(caption(given.output, VLKDProcessor.from_pretrained(given.model), given.image)))


if __name__ == "__main__":
    main()
