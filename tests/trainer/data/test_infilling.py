"""The corruption: its statistics, what it keeps, and that it follows the seed alone."""

import numpy as np
import pytest

from trainer.data.infilling import SPAN_LENGTH, TextInfilling, draw_spans, mask_spans, seeded_rng

MASK = 99


def caption(tokens: int) -> list[int]:
    return [0, *range(10, 10 + tokens), 2]


def corrupt_many(
    mask_ratio: float, full_mask_probability: float, tokens: int = 20, times: int = 3000
) -> list[list[int]]:
    infilling = TextInfilling(MASK, mask_ratio, full_mask_probability)
    return [infilling(caption(tokens), seeded_rng(0, 0, 0, index)) for index in range(times)]


@pytest.mark.parametrize("tokens", [3, 10, 40])
@pytest.mark.parametrize("mask_ratio", [0.15, 0.3, 0.7])
def test_share_of_covered_tokens_is_the_ratio(tokens, mask_ratio):
    kept = [sum(token >= 10 and token != MASK for token in row) for row in corrupt_many(mask_ratio, 0.0, tokens)]
    assert 1 - np.mean(kept) / tokens == pytest.approx(mask_ratio, abs=0.015)


def test_spans_are_poisson():
    rng = np.random.default_rng(0)
    spans = np.array(draw_spans(200_000, 0.9, rng))
    assert spans.mean() == pytest.approx(SPAN_LENGTH, abs=0.05)
    assert (spans == 0).mean() == pytest.approx(np.exp(-SPAN_LENGTH), abs=0.005)
    assert spans.sum() in (180_000, 180_001)


def test_share_of_whole_masks():
    whole = [row == [0, MASK, 2] for row in corrupt_many(0.3, 0.4)]
    assert np.mean(whole) == pytest.approx(0.4, abs=0.03)


def test_a_span_becomes_one_mask_and_a_span_of_zero_an_insertion():
    for seed in range(20):
        corrupted = mask_spans([1, 2, 3, 4, 5], [2, 0], MASK, np.random.default_rng(seed))
        kept = [token for token in corrupted if token != MASK]
        assert len(corrupted) == 5 and corrupted.count(MASK) == 2 and kept == sorted(kept)


def test_spans_may_stand_anywhere():
    places = {tuple(mask_spans([1, 2, 3], [1], MASK, np.random.default_rng(seed))) for seed in range(50)}
    assert places == {(MASK, 2, 3), (1, MASK, 3), (1, 2, MASK)}


def test_special_tokens_stay_at_the_ends():
    for row in corrupt_many(0.9, 0.1, times=200):
        assert row[0] == 0 and row[-1] == 2


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, caption(5)), (1.0, None)])
def test_extremes(ratio, expected):
    corrupted = TextInfilling(MASK, ratio, 0.0)(caption(5), seeded_rng(0, 0, 0, 0))
    assert corrupted == expected or set(corrupted[1:-1]) == {MASK}


def test_empty_caption_stays_empty():
    assert TextInfilling(MASK, 0.3, 0.0)([0, 2], seeded_rng(0, 0, 0, 0)) == [0, 2]


def test_draws_follow_seed_stream_epoch_and_index():
    def draw(*key):
        return tuple(seeded_rng(*key).integers(1 << 30, size=3))

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert draw(*keys[0]) == draw(*keys[0])
    assert len({draw(*key) for key in keys}) == len(keys)


@pytest.mark.parametrize("field", ["mask_ratio", "full_mask_probability"])
def test_shares_lie_between_zero_and_one(field):
    with pytest.raises(ValueError, match=f"{field} is 1.5"):
        TextInfilling(**{"mask_token_id": MASK, "mask_ratio": 0.3, "full_mask_probability": 0.3, field: 1.5})
