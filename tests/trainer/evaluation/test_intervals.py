"""Proportions and their Wilson intervals, against published values."""

import pytest

from trainer.evaluation.intervals import proportion


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
