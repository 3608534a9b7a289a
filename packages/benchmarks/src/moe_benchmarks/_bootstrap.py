"""Resampling of arrays: draws, quantiles, intervals, and ratios that bear infinities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000  # a 2.5 % quantile then rests on 50 resamples
LEVEL = 0.95  # of the intervals


class Interval(NamedTuple):
    """An estimate and its bootstrap interval; an infinite number of trials is `math.inf`."""

    value: float
    low: float
    high: float


def draws(size: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Draw indices of trials with replacement, shape (resamples, size)."""
    return np.random.default_rng(seed).integers(size, size=(resamples, size))


def chance_of(value: float, permuted: Floats) -> float:
    """Return the share of permutations, the one observed among them, that are as far from 0."""
    # Equal up to rounding counts as equal.
    far = np.abs(permuted) >= abs(value) * (1 - 1e-9)
    return float((1 + np.sum(far)) / (1 + len(permuted)))


def median_trials(share: Any) -> Floats:  # noqa: ANN401 - an array or a number
    """Return the smallest N with ``1 - (1 - share)**N >= 1/2``, infinite for a share of 0."""
    share = np.asarray(share, dtype=np.float64)
    with np.errstate(divide="ignore"):
        needed = np.log(0.5) / np.log1p(-np.minimum(share, 0.5))
    # 1 - 2**(-1 / 7), say, must give 7 and not 8.
    return np.asarray(np.where(share > 0, np.ceil(np.round(needed, 9)), np.inf), dtype=np.float64)


def divide(without: Floats, searched: Floats) -> Floats:
    """Divide finite numbers of trials by some that may be infinite."""
    return np.asarray(np.where(np.isfinite(searched), without / searched, 0.0), dtype=np.float64)


def subtract(first: Floats, second: Floats) -> Floats:
    """Subtract losses; two that are infinite are equal."""
    both = np.isinf(first) & np.isinf(second)
    return np.asarray(
        np.where(both, 0.0, np.where(both, 0.0, first) - np.where(both, 0.0, second)),
        dtype=np.float64,
    )


def quantiles(values: Floats, levels: Sequence[float]) -> Floats:
    """Return quantiles over the first axis; values themselves, as infinities have no middle."""
    return np.asarray(np.quantile(values, levels, axis=0, method="inverted_cdf"), dtype=np.float64)


def interval_of(value: float, resampled: Floats) -> Interval:
    """Bound an estimate by the middle 95 % of its resamples."""
    low, high = quantiles(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, float(low), float(high))
