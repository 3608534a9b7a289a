"""By how much the cost changes, paired over rows, and which changes count as gains."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_localsearch._checks import FloatArray, IntArray

BoolArray = NDArray[np.bool_]


class Changes(NamedTuple):
    """What some candidates cost more than a permutation, shape (B,) each.

    `mean` is the change of the mean cost, in its unit; negative is better. `standard_error`
    is that of this mean of paired differences over the rows: 0 where the objective has no
    rows, infinite with a single one. `exact` is False where evaluation was given up after
    some of the rows, because the candidate was clearly worse on them.
    """

    mean: FloatArray
    standard_error: FloatArray
    exact: BoolArray


def pessimistic(changes: Changes, num_standard_errors: float) -> FloatArray:
    """Return the changes, each worse by `num_standard_errors` of its standard errors."""
    if num_standard_errors == 0:  # 0 times infinity is NaN
        return changes.mean
    return changes.mean + num_standard_errors * changes.standard_error


def are_gains(changes: Changes, num_standard_errors: float) -> BoolArray:
    """Mark the candidates that are known to cost less by so many standard errors."""
    with np.errstate(invalid="ignore"):
        lower = pessimistic(changes, num_standard_errors) < 0
    return lower & changes.exact & (changes.mean > -np.inf)


def without_rows(changes: FloatArray) -> Changes:
    """Return changes of an objective that does not tell its rows apart."""
    return Changes(changes, np.zeros_like(changes), np.ones(len(changes), dtype=bool))


def joined(parts: Iterable[Changes]) -> Changes:
    """Return the changes of parts of the candidates as one, of none if there are none."""
    columns = zip(*[without_rows(np.empty(0)), *parts], strict=True)
    return Changes(*(np.concatenate(column) for column in columns))


class ChangeSums:
    """Sums of paired differences of B candidates, over the rows seen so far."""

    def __init__(self, num_candidates: int) -> None:
        self.totals = np.zeros(num_candidates)
        self.squares = np.zeros(num_candidates)
        self.num_rows = np.zeros(num_candidates, dtype=np.int64)

    def add(self, candidates: IntArray, differences: FloatArray) -> None:
        """Add the difference of one row of each of `candidates`, shapes (R,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = differences**2
        self.totals += np.bincount(candidates, differences, minlength=len(self.totals))
        self.squares += np.bincount(candidates, squares, minlength=len(self.totals))

    def changes(self) -> tuple[FloatArray, FloatArray]:
        """Return the means and their standard errors; rows not added had a difference of 0."""
        count = self.num_rows.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            mean = self.totals / count
            spread = np.maximum(self.squares - count * mean**2, 0) / (count - 1)
            standard_error = np.where(count > 1, np.sqrt(spread / count), np.inf)
        return mean, standard_error


def difference(costs: FloatArray, cost: float) -> FloatArray:
    """Return ``costs - cost``; from an infinite cost a finite one is the largest gain."""
    with np.errstate(invalid="ignore", over="ignore"):
        changes = costs - cost
    left_infinity = (cost == np.inf) & np.isfinite(costs)
    return np.where(left_infinity, np.finfo(np.float64).min, changes)


def standard_error_of(differences: FloatArray) -> float:
    """Return the standard error of the mean of paired differences, shape (T,)."""
    num_rows = len(differences)
    if num_rows < 2:
        return np.inf
    with np.errstate(invalid="ignore", over="ignore"):  # differences may be infinite
        return float(differences.std(ddof=1) / np.sqrt(num_rows))
