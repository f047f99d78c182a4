"""Recall worked out by hand."""

import numpy as np
import pytest
import torch

from trainer.evaluation import scoring
from trainer.evaluation.metrics.ranks import recall_scores


def circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# Three images at 0, 40 and 90 degrees; image 0 has two texts.
IMAGES = circle(0, 40, 90)
TEXTS = circle(5, 60, 35, 100)
OWNERS = [0, 0, 1, 2]
# By angle, the text at 5 finds image 0; the one at 60 is nearest to image 1 (20), then 2 (30), then its own 0 (60).
# Image 0 finds its text at 5, image 1 the one at 35, image 2 the one at 100.


def test_recall_by_hand_with_several_texts_an_image():
    scores = recall_scores(IMAGES, TEXTS, OWNERS)
    assert scores["text_to_image"]["R@1"]["value"] == 0.75
    assert scores["text_to_image"]["R@5"]["value"] == 1
    assert scores["image_to_text"]["R@1"]["value"] == 1
    assert (scores["text_to_image"]["R@1"]["n"], scores["image_to_text"]["R@1"]["n"]) == (4, 3)


def test_recall_asks_for_any_text_of_the_image():
    # Image 1's nearest text is now that at 45, image 0's second.
    scores = recall_scores(IMAGES, circle(5, 45, 25, 100), OWNERS)
    assert scores["image_to_text"]["R@1"]["value"] == pytest.approx(2 / 3)
    assert scores["text_to_image"]["R@1"]["value"] == 0.75  # the text at 45 is nearest to image 1


def test_recall_at_five_and_ten_count_ranks():
    # Text i points at image 2 i: its own image i lies behind 2, 4, … nearer ones.
    images = circle(*range(0, 120, 5))
    texts = circle(*(10 * i for i in range(12)), *(5 * i for i in range(12, 24)))
    scores = recall_scores(images, texts, list(range(24)))["text_to_image"]
    # Text i is 5 i degrees off: 2 i - 1 images lie nearer and one as near, so its own has rank 2 i, from 0.
    assert scores["R@1"]["value"] == pytest.approx((1 + 12) / 24)
    assert scores["R@5"]["value"] == pytest.approx((3 + 12) / 24)
    assert scores["R@10"]["value"] == pytest.approx((5 + 12) / 24)


def test_one_embedding_for_everything_finds_nothing():
    scores = recall_scores(np.ones((20, 4)), np.ones((20, 4)), list(range(20)))
    assert {score["value"] for depths in scores.values() for score in depths.values()} == {0}


def test_recall_is_the_diagonal_argmax_of_random_vectors():
    torch.manual_seed(0)
    images = torch.randn(3000, 8)
    texts = images + torch.randn(3000, 8)
    nearest = (torch.nn.functional.normalize(texts) @ torch.nn.functional.normalize(images).T).argmax(1)
    expected = (nearest == torch.arange(3000)).float().mean().item()
    found = recall_scores(images, texts * 7, range(3000))["text_to_image"]["R@1"]
    assert found["value"] == pytest.approx(expected, abs=1e-6)
    assert found["low"] < expected < found["high"]


def test_interval_draws_an_image_with_its_texts():
    # Image 0's three texts find it, image 1's do not: a resample of two images gives 0, 1/2 or 1.
    scores = recall_scores(circle(0, 90), circle(0, 1, 2, 3, 4, 5), [0, 0, 0, 1, 1, 1])["text_to_image"]["R@1"]
    assert (scores["value"], scores["low"], scores["high"]) == (0.5, 0, 1)


def test_score_retrieval_names_its_figures():
    figures = scoring.score_retrieval(torch.tensor(IMAGES), torch.tensor(TEXTS), OWNERS)
    assert [(f["metric"], f["row"]) for f in figures] == [
        *((f"retrieval R@{k}", "image to text") for k in (1, 5, 10)),
        *((f"retrieval R@{k}", "text to image") for k in (1, 5, 10)),
    ]
    assert figures[3]["value"] == 0.75


@pytest.mark.parametrize(
    "images, texts, owners, message",
    [
        (IMAGES, TEXTS[:, :1], OWNERS, "do not fit"),
        (IMAGES, TEXTS, OWNERS[:3], "do not fit"),
        (IMAGES, TEXTS, [0, 0, 1, 3], "integers from 0 to 2"),
        (IMAGES, TEXTS, [0.0, 0, 1, 2], "integers"),
        (IMAGES, TEXTS, [0, 0, 1, 1], "image 2 has no text .1 images have none."),
        (IMAGES * np.nan, TEXTS, OWNERS, "image_embeds must be nonzero rows of finite"),
        (IMAGES, TEXTS * 0, OWNERS, "text_embeds must be nonzero"),
    ],
)
def test_what_does_not_fit_is_named(images, texts, owners, message):
    with pytest.raises(ValueError, match=message):
        recall_scores(images, texts, owners)
