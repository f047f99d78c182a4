"""95% bootstrap intervals. Every metric's folder holds this same file, because each folder is a Space of its own."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 1000


def resampled(data: Sequence[np.ndarray], statistic: Callable, seed: int) -> tuple[float, float]:
    """The percentile bootstrap interval of `statistic(*data, axis=…)`; an index draws from all of `data` together.

    One item, or items that are all alike, leave nothing to resample: both ends are then the statistic itself.
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

    What shares a group (the questions of one image) is drawn together, so that it is not taken for so much evidence.
    """
    scores = np.asarray(scores, dtype=float)
    of_group = np.arange(len(scores)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(of_group, weights=scores), np.bincount(of_group)
    low, high = resampled([sums, counts], lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis), seed)
    return {"value": float(scores.mean()), "n": len(scores), "low": low, "high": high}
