"""Asks a model many prompts at once: with images, without, or a plain BART."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def encode_images(model: PreTrainedModel, processor, images: Sequence, batch_size: int = 64) -> torch.Tensor:
    """V of every image, (n, N, d_j), once and for all the prompts about it."""
    model.eval()
    features = []
    for start in tqdm(range(0, len(images), batch_size), desc="images", leave=False):
        pixel_values = processor(images=list(images[start : start + batch_size]), return_tensors="pt")["pixel_values"]
        features.append(model.get_image_features(pixel_values.to(model.device)).last_hidden_state)
    return torch.cat(features)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    image_features: torch.Tensor | None = None,
    batch_size: int = 128,
    desc: str = "prompts",
    **generate_kwargs,
) -> list[str]:
    """What the decoder writes in the place of `<mask>`: it starts from the part of the prompt before it.

    Args:
        model: VLKDForConditionalGeneration, or BartForConditionalGeneration when there are no images.
        prompts: texts with one `<mask>`.
        image_features: (n, N, d_j), a row a prompt; None asks without an image.
        generate_kwargs: handed to `generate`; greedy, 24 new tokens unless set.

    Returns:
        The new text of each prompt, stripped of special tokens and surrounding space.
    """
    model.eval()
    options = {"max_new_tokens": 24, "do_sample": False, "num_beams": 1} | generate_kwargs
    prefixes = [tokenizer(prompt.split(tokenizer.mask_token)[0].rstrip()).input_ids[:-1] for prompt in prompts]
    by_length = defaultdict(list)  # BART counts positions from the decoder's first token: no padding there
    for row, prefix in enumerate(prefixes):
        by_length[len(prefix)].append(row)
    batches = [rows[i : i + batch_size] for rows in by_length.values() for i in range(0, len(rows), batch_size)]
    texts = [""] * len(prompts)
    for rows in tqdm(batches, desc=desc, leave=False):
        inputs = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt").to(model.device)
        start = model.generation_config.decoder_start_token_id
        decoder_input_ids = torch.tensor([[start, *prefixes[row]] for row in rows], device=model.device)
        if image_features is not None:
            inputs["image_features"] = image_features[rows]
        ids = model.generate(**inputs, decoder_input_ids=decoder_input_ids, **options)
        new = tokenizer.batch_decode(ids[:, decoder_input_ids.shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, new, strict=True):
            texts[row] = text.strip()
    return texts
