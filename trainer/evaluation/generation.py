"""Generate the texts of many prompts at once, with or without images."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from tqdm.auto import tqdm
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase

from modeling_vlkd.generation_vlkd import default_generation_config


@torch.no_grad()
def encode_images(model: PreTrainedModel, processor, images: Sequence, batch_size: int = 64) -> torch.Tensor:
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
        for rows in _batches_of_equal_length(prefixes, batch_size):
            inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(model.device)
            if image_features is not None:
                inputs["image_features"] = image_features[rows].to(model.device)
            decoder_input_ids = torch.tensor([prefixes[row] for row in rows], device=model.device)
            generated = model.generate(**inputs, decoder_input_ids=decoder_input_ids, **options)
            new = tokenizer.batch_decode(generated[:, decoder_input_ids.shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, new, strict=True):
                texts[row] = text.strip()
            progress.update(len(rows))
    return texts


@contextmanager
def plain_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Ignore the saved generation configs of the model and of the BART in it."""
    saved = {part: part.generation_config for part in model.modules() if isinstance(part, GenerationMixin)}
    try:
        for part in saved:
            part.generation_config = default_generation_config(getattr(part.config, "text_config", part.config))
        yield
    finally:
        for part, generation_config in saved.items():
            part.generation_config = generation_config


def _before_mask(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    if (masks := ids.count(tokenizer.mask_token_id)) != 1:
        prompt, mask = tokenizer.decode(ids), tokenizer.mask_token
        raise ValueError(f"The prompt {prompt!r} has {masks} {mask}; put one where the answer goes.")
    return ids[: ids.index(tokenizer.mask_token_id)]


def _batches_of_equal_length(sequences: list[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Batches of row numbers. Decoder inputs cannot be padded: BART counts positions from the first token."""
    by_length = defaultdict(list)
    for row, sequence in enumerate(sequences):
        by_length[len(sequence)].append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
