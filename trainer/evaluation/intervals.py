"""MetricTable with their n and their 95% interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

_Z = 1.959964  # the standard normal's 97.5th percentile


@dataclass(frozen=True)
class Proportion:
    """A share of n trials and its 95% Wilson score interval."""

    value: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(figure, 4) for name, figure in asdict(self).items()}


def proportion(successes: Sequence[bool]) -> Proportion:
    """Share of true values with its Wilson interval (Wilson, 1927), which stays inside [0, 1] for any n.

    Raises:
        ValueError: if there is no trial.
    """
    n = len(successes)
    if n == 0:
        raise ValueError("A proportion of no trials is undefined: there was nothing to score.")
    p = sum(successes) / n
    centre, scale = p + _Z**2 / (2 * n), 1 + _Z**2 / n
    spread = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # At p = 0 and p = 1 one end is p itself; rounding must not move it.
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return Proportion(p, n, min(low, p) if p else 0.0, max(high, p) if p < 1 else 1.0)


def first_hits(queries: torch.Tensor, gallery: torch.Tensor, pool: int = 100) -> list[bool]:
    """Whether each query's own gallery item is its nearest in its pool: R@1 is the share.

    Args:
        queries, gallery: unit vectors (n, d); row i of one belongs to row i of the other.
        pool: rows are compared within consecutive pools of this many; a rest smaller than a pool is left out.

    Raises:
        ValueError: if there are fewer rows than one pool, or the two numbers of rows differ.
    """
    if len(queries) != len(gallery) or len(queries) < pool:
        raise ValueError(f"R@1 of {pool} needs at least {pool} pairs: got {len(queries)} and {len(gallery)} rows.")
    hits: list[bool] = []
    for start in range(0, len(queries) - pool + 1, pool):
        scores = queries[start : start + pool] @ gallery[start : start + pool].T
        hits += (scores.argmax(dim=1).cpu() == torch.arange(pool)).tolist()
    return hits
