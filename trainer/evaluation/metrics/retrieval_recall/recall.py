"""Recall among the first K, from images to their texts and back."""

import numpy as np

from .interval import mean_estimate

DEPTHS = (1, 5, 10)
ROWS = 1024  # queries compared at a time


def recall_scores(image_embeds, text_embeds, image_of_text, seed: int = 0) -> dict[str, dict[str, dict]]:
    """The share of queries that have a match among their nearest 1, 5 and 10, by cosine.

    A text's match is its image; an image's match is any of its texts. What lies as near as the match counts as nearer:
    a model that gives everything one embedding finds nothing.

    Args:
        image_embeds: (images, dim), arrays or tensors of any scale.
        text_embeds: (texts, dim).
        image_of_text: for each text, the row of its image.
        seed: of the bootstrap, which resamples images, each with its texts.

    Returns:
        {"image_to_text": {"R@1": {"value", "n", "low", "high"}, …}, "text_to_image": …}.

    Raises:
        ValueError: shapes that do not fit, values that are no numbers, a row outside, an image without a text.
    """
    images, texts = _unit(image_embeds, "image_embeds"), _unit(text_embeds, "text_embeds")
    owner = np.asarray(image_of_text)
    if images.shape[1] != texts.shape[1] or owner.shape != (len(texts),):
        raise ValueError(
            f"image_embeds {images.shape}, text_embeds {texts.shape} and image_of_text {owner.shape} do not fit: "
            "(images, dim), (texts, dim) and (texts,)."
        )
    if not np.issubdtype(owner.dtype, np.integer) or owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"image_of_text must hold rows of image_embeds, whole numbers from 0 to {len(images) - 1}.")
    without = np.setdiff1d(np.arange(len(images)), owner)
    if len(without):
        raise ValueError(f"image {without[0]} has no text ({len(without)} have none): leave out such images.")
    to_image, to_text = np.empty(len(texts), int), np.empty(len(images), int)
    for start in range(0, len(texts), ROWS):
        rows = slice(start, start + ROWS)
        to_image[rows] = _nearer(texts[rows] @ images.T, owner[rows, None] == np.arange(len(images)))
    for start in range(0, len(images), ROWS):
        rows = np.arange(start, min(start + ROWS, len(images)))
        to_text[rows] = _nearer(images[rows] @ texts.T, owner == rows[:, None])
    return {
        "image_to_text": {f"R@{k}": mean_estimate(to_text < k, seed=seed) for k in DEPTHS},
        "text_to_image": {f"R@{k}": mean_estimate(to_image < k, owner, seed) for k in DEPTHS},
    }


def _unit(embeds, name: str) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float32)
    if embeds.ndim != 2 or not embeds.size or not np.isfinite(embeds).all() or not embeds.any(axis=1).all():
        raise ValueError(f"{name} must be rows of finite numbers, none of them all zero: got shape {embeds.shape}.")
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def _nearer(scores: np.ndarray, is_match: np.ndarray) -> np.ndarray:
    """How many others lie at least as near to each query as the nearest of its matches. Both (queries, gallery)."""
    best = np.where(is_match, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~is_match).sum(axis=1)
