"""Recall at K, from images to texts and from texts to images."""

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import mean_estimate

DEPTHS = (1, 5, 10)
ROWS = 1024  # queries compared at a time


def recall_scores(
    image_embeds: ArrayLike, text_embeds: ArrayLike, image_of_text: ArrayLike, seed: int = 0
) -> dict[str, dict[str, dict]]:
    """R@1, R@5 and R@10 in both directions: the share of queries whose `retrieval_ranks` is below K.

    Args:
        image_embeds, text_embeds, image_of_text: as in `retrieval_ranks`.
        seed: of the bootstrap, which resamples images together with their texts.

    Returns:
        {"image_to_text": {"R@1": {"value", "n", "low", "high"}, ...}, "text_to_image": ...}.
    """
    to_text, to_image = retrieval_ranks(image_embeds, text_embeds, image_of_text)
    return {
        "image_to_text": {f"R@{k}": mean_estimate(to_text < k, seed=seed) for k in DEPTHS},
        "text_to_image": {f"R@{k}": mean_estimate(to_image < k, image_of_text, seed) for k in DEPTHS},
    }


def retrieval_ranks(
    image_embeds: ArrayLike, text_embeds: ArrayLike, image_of_text: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """The rank, from 0, of each query's best match by cosine similarity.

    A text's match is its image; an image's matches are its texts. Ties count against the match, so constant embeddings
    have a recall of 0.

    Args:
        image_embeds: (images, dim), arrays or tensors of any scale.
        text_embeds: (texts, dim).
        image_of_text: for each text, the row of its image.

    Returns:
        The ranks among texts (images,) and among images (texts,).

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an invalid row, or an image without a text.
    """
    images, texts = _unit(image_embeds, "image_embeds"), _unit(text_embeds, "text_embeds")
    owner = np.asarray(image_of_text)
    if images.shape[1] != texts.shape[1] or owner.shape != (len(texts),):
        raise ValueError(
            f"image_embeds {images.shape}, text_embeds {texts.shape} and image_of_text {owner.shape} do not fit: "
            "expected (images, dim), (texts, dim) and (texts,)."
        )
    if not np.issubdtype(owner.dtype, np.integer) or owner.min() < 0 or owner.max() >= len(images):
        raise ValueError(f"image_of_text must hold rows of image_embeds, integers from 0 to {len(images) - 1}.")
    without = np.setdiff1d(np.arange(len(images)), owner)
    if len(without):
        raise ValueError(f"image {without[0]} has no text ({len(without)} images have none); leave them out.")
    image = np.arange(len(images))
    return _ranks(images, texts, image, owner), _ranks(texts, images, owner, image)


def _unit(embeds, name: str) -> np.ndarray:
    embeds = np.asarray(embeds, dtype=np.float32)
    if embeds.ndim != 2 or not embeds.size or not np.isfinite(embeds).all() or not embeds.any(axis=1).all():
        raise ValueError(f"{name} must be nonzero rows of finite numbers; its shape is {embeds.shape}.")
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def _ranks(queries: np.ndarray, gallery: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """How many gallery items score at least as high as the best one with the query's id."""
    ranks = []
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        scores = queries[rows] @ gallery.T
        is_match = query_ids[rows, None] == gallery_ids
        best = np.where(is_match, scores, -np.inf).max(axis=1, keepdims=True)
        ranks.append(((scores >= best) & ~is_match).sum(axis=1))
    return np.concatenate(ranks)
