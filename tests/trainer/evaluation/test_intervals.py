"""Proportions, their intervals and R@1, against values known from elsewhere or worked out by hand."""

import pytest
import torch

from trainer.evaluation.intervals import first_hits, proportion


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),  # as R's binom.confint(8, 10, methods="wilson")
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(hits, n, low, high):
    found = proportion([True] * hits + [False] * (n - hits))
    assert (found.value, found.n) == (hits / n, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_interval_holds_the_value_and_stays_in_bounds():
    for n in (1, 2, 7, 1000):
        for hits in {0, 1, n // 2, n}:
            found = proportion([True] * hits + [False] * (n - hits))
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_as_dict():
    assert proportion([True, False, True]).as_dict() == {"value": 0.6667, "n": 3, "low": 0.2077, "high": 0.9385}


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no trials"):
        proportion([])


def test_first_hits_by_hand():
    """Query 0 is nearest to its own item; 1 to item 0; 2 to its own."""
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = torch.tensor([[0.8, 0.6], [0.8, 0.6], [-0.6, 0.8]])
    assert first_hits(queries, gallery, pool=3) == [True, False, False]
    assert first_hits(gallery, queries, pool=3) == [True, False, True]  # item 1: 0.6, 0.6 and 0.8


def test_pools_are_apart_and_a_rest_is_left_out():
    queries = torch.eye(2).repeat(2, 1)  # rows 0 and 2 are equal, and so are 1 and 3
    assert first_hits(queries, queries, pool=2) == [True] * 4
    assert first_hits(queries, queries, pool=4) == [True, True, False, False]
    assert first_hits(queries[:3], queries[:3], pool=2) == [True, True]


def test_too_few_pairs():
    with pytest.raises(ValueError, match="needs at least 100 pairs: got 99 and 99 rows"):
        first_hits(torch.eye(99), torch.eye(99))
    with pytest.raises(ValueError, match="got 3 and 2 rows"):
        first_hits(torch.eye(3), torch.eye(3)[:2], pool=2)
