"""Seeded 95% bootstrap intervals."""

from collections.abc import Callable, Sequence

import datasets
import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 1000
TEXT_FEATURES = datasets.Features(  # of the metrics that compare a text with reference texts
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)


def bootstrap_interval(data: Sequence[np.ndarray], statistic: Callable, seed: int) -> tuple[float, float]:
    """The percentile interval of `statistic(*data, axis=...)`. The arrays in `data` are resampled together.

    A single item gives an interval of width 0.
    """
    if len(data[0]) < 2:
        value = float(statistic(*data, axis=-1))
        return value, value
    found = bootstrap(
        data, statistic, n_resamples=RESAMPLES, batch=100, paired=True, method="percentile", vectorized=True, rng=seed
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_estimate(scores: Sequence[float], groups: Sequence | None = None, seed: int = 0) -> dict[str, float]:
    """The mean score as {"value", "n", "low", "high"}.

    Args:
        scores: one per item.
        groups: of each item, such as the image of a question. Groups are resampled as a whole, because items of one
            group are not independent.
        seed: of the bootstrap.
    """
    scores = np.asarray(scores, dtype=float)
    of_group = np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(of_group, weights=scores), np.bincount(of_group)
    low, high = bootstrap_interval([sums, counts], lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis), seed)
    return {"value": float(scores.mean()), "n": len(scores), "low": low, "high": high}
