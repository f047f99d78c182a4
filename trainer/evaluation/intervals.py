"""Proportions with their 95% Wilson score interval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Proportion:
    """A share of n trials and its 95% Wilson score interval."""

    value: float
    n: int
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(number, 4) for name, number in asdict(self).items()}


def proportion(successes: Sequence[bool]) -> Proportion:
    """The share of true values with its Wilson interval.

    Raises:
        ValueError: there are no trials.
    """
    if len(successes) == 0:
        raise ValueError("A proportion of no trials is undefined; there was nothing to score.")
    k, n = int(sum(successes)), len(successes)
    interval = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    return Proportion(k / n, n, float(interval.low), float(interval.high))
