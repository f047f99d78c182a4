"""Generate the texts of many prompts at once, with or without images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from modeling_vlkd.generation_vlkd import (
    VLKDGenerationMixin,
    default_generation_config,
    generate_by_prompt_length,
)

CHUNK_BATCHES = 4  # batches of images in memory; their questions fill batches of prompts of similar length


@torch.no_grad()
def encode_images(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[Any], batch_size: int = 64
) -> torch.Tensor:
    """V of each image: (n, N, d_j)."""
    model.eval()
    features = []
    for start in tqdm(range(0, len(images), batch_size), desc="images", leave=False):
        pixel_values = processor(images=list(images[start : start + batch_size]), return_tensors="pt")["pixel_values"]
        features.append(model.get_image_features(pixel_values.to(model.device, model.dtype)).last_hidden_state)
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
    """Generate the text at each prompt's `<mask>`; the decoder starts with the part before it.

    Args:
        model: VLKDForConditionalGeneration, or BartForConditionalGeneration without images.
        prompts: texts with one `<mask>`.
        image_features: (n, N, d_j), one row per prompt; None without images.
        generate_kwargs: arguments of `generate`; by default greedy with 24 new tokens. The checkpoint's generation
            config is ignored.

    Returns:
        The new text of each prompt, without special tokens and surrounding spaces.

    Raises:
        ValueError: a prompt does not have exactly one `<mask>` or is too long, or the numbers of images and prompts
            differ.
    """
    if image_features is not None and len(image_features) != len(prompts):
        raise ValueError(
            f"{len(image_features)} rows of image_features for {len(prompts)} prompts; give one per prompt."
        )
    model.eval()
    options = {"max_new_tokens": 24, "do_sample": False, "num_beams": 1} | generate_kwargs
    ids = tokenizer(list(prompts)).input_ids
    start = model.generation_config.decoder_start_token_id
    prefixes = [[start, *_before_mask(tokenizer, row)] for row in ids]
    longest = max([*map(len, ids), *(len(prefix) + options["max_new_tokens"] for prefix in prefixes)], default=0)
    if longest > tokenizer.model_max_length:
        raise ValueError(
            f"A prompt with its answer may have {longest} tokens, but the model's limit is "
            f"{tokenizer.model_max_length}; shorten the prompt or lower max_new_tokens."
        )
    texts = [""] * len(prompts)
    with plain_defaults(model), tqdm(total=len(prompts), desc=desc, leave=False) as progress:
        by_length = sorted(range(len(prompts)), key=lambda row: len(prefixes[row]))
        for start in range(0, len(prompts), batch_size):
            rows = by_length[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(model.device)
            if image_features is not None:
                inputs["image_features"] = image_features[rows].to(model.device)
            own = [torch.tensor(prefixes[row], device=model.device) for row in rows]
            generated = _generate(model, **inputs, decoder_input_ids=own, **options)
            new = [line[len(prefix) :] for line, prefix in zip(generated, own, strict=True)]
            for row, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[row] = text.strip()
            progress.update(len(rows))
    return texts


def _generate(model: PreTrainedModel, **kwargs) -> torch.LongTensor:
    """Generate from prompts of different lengths, also with a plain BART."""
    if isinstance(model, VLKDGenerationMixin):
        return model.generate(**kwargs)
    return generate_by_prompt_length(model.generate, model.generation_config, model.config.pad_token_id, **kwargs)


@contextmanager
def plain_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Ignore the saved generation configs of the model: its own, and the one for texts alone."""
    names = [name for name in ("generation_config", "text_generation_config") if hasattr(model, name)]
    saved = {name: getattr(model, name) for name in names}
    try:
        for name in names:
            setattr(model, name, default_generation_config(getattr(model.config, "text_config", model.config)))
        yield
    finally:
        for name, generation_config in saved.items():
            setattr(model, name, generation_config)


def _before_mask(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    if (masks := ids.count(tokenizer.mask_token_id)) != 1:
        prompt, mask = tokenizer.decode(ids), tokenizer.mask_token
        raise ValueError(f"The prompt {prompt!r} has {masks} {mask}; put one where the answer goes.")
    return ids[: ids.index(tokenizer.mask_token_id)]
