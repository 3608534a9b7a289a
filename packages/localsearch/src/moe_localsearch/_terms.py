"""What changes in a mixed output when a few positions use other experts, and in which rows."""

from typing import NamedTuple

import numpy as np

from moe_localsearch._changes import BoolArray
from moe_localsearch._checks import FloatArray, IntArray, RealArray


class Terms(NamedTuple):
    """For each of B candidates, M experts that gain one position's weight and lose another's.

    The change of row t is the sum over m of
    ``(weights[t, gains[m]] - weights[t, loses[m]]) * outputs[t, experts[m]]``, in which
    position n stands for none. All have shape (B, M); `moved`, shape (B, m), are the
    positions whose expert changes, padded with n.
    """

    experts: IntArray
    gains: IntArray
    loses: IntArray
    moved: IntArray

    def of(self, candidates: IntArray) -> "Terms":
        """Return the terms of some of the candidates."""
        return Terms(*(each[candidates] for each in self))


def terms(permutation: IntArray, candidates: IntArray) -> Terms:
    """Compare `candidates`, shape (B, n), with `permutation`, shape (n,).

    An expert that passes from one position to another is one term, read once: half the work
    of leaving and joining as two. What is left are experts that several positions share.
    """
    size = len(permutation)
    changed = candidates != permutation
    width = int(changed.sum(axis=1).max(initial=1))  # argmax needs one at least
    moved = np.argsort(~changed, axis=1, kind="stable")[:, :width]
    is_moved = np.take_along_axis(changed, moved, axis=1)
    new = np.take_along_axis(candidates, moved, axis=1)
    nobody = np.full_like(moved, size)
    moved = np.where(is_moved, moved, nobody)
    old = np.append(permutation, -1)[moved]

    passes = (old[:, :, None] == new[:, None, :]) & is_moved[:, None, :]  # (B, old, new)
    successor = passes.argmax(axis=2)
    followed = passes.any(axis=2)
    gains = np.where(followed, np.take_along_axis(moved, successor, axis=1), nobody)
    taken_over = np.zeros_like(is_moved)
    rows, columns = np.nonzero(followed)
    taken_over[rows, successor[rows, columns]] = True

    experts, loses = np.where(is_moved, old, 0), moved
    joins = is_moved & ~taken_over
    if joins.any():
        experts = np.concatenate([experts, np.where(joins, new, 0)], axis=1)
        gains = np.concatenate([gains, np.where(joins, moved, nobody)], axis=1)
        loses = np.concatenate([loses, nobody], axis=1)
    return Terms(experts, gains, loses, moved)


def add_terms(
    total: FloatArray,
    weights: RealArray,
    outputs: RealArray,
    rows: IntArray,
    of_rows: Terms,
) -> None:
    """Add to `total`, shape (R, O), the change of row ``rows[r]`` by the terms in row r.

    An output is only read where its weight changes, so that a NaN elsewhere does no harm.
    """
    for expert, gain, lose in zip(of_rows.experts.T, of_rows.gains.T, of_rows.loses.T, strict=True):
        change = _weight(weights, rows, gain) - _weight(weights, rows, lose)
        (some,) = np.nonzero(change)
        with np.errstate(invalid="ignore", over="ignore"):
            total[some] += change[some, None] * outputs[rows[some], expert[some]]


def _weight(weights: RealArray, rows: IntArray, positions: IntArray) -> FloatArray:
    """Return the weights of positions in rows, shape (R,); 0 of nobody."""
    size = weights.shape[1]
    found = weights[rows, np.minimum(positions, size - 1)]
    return np.where(positions < size, found, 0).astype(np.float64)


class ActiveRows:
    """The rows, of some, in which each position has a weight."""

    def __init__(self, active: BoolArray, rows: IntArray) -> None:
        position, row = np.nonzero(active[rows].T)
        self._active = active
        self._rows = rows[row]
        counts = np.bincount(position, minlength=active.shape[1])
        # Position n, nobody, has no rows.
        self._counts = np.append(counts, 0)
        self._starts = np.append(np.cumsum(counts) - counts, 0)
        self.num_rows = len(rows)

    def most(self, moved: IntArray) -> IntArray:
        """Return how many rows the positions `moved`, shape (B, m), have at most, shape (B,)."""
        most: IntArray = self._counts[moved].sum(axis=1)
        return most

    def pairs(self, moved: IntArray) -> tuple[IntArray, IntArray]:
        """Return the rows that each candidate touches, and of which candidate each is: (R,) both.

        `moved`, shape (B, m), are the positions that each candidate moves; a row in which several
        of them have a weight comes once.
        """
        found = [self._of_column(moved, column) for column in range(moved.shape[1])]
        rows, candidates = (np.concatenate(each) for each in zip(*found, strict=True))
        return rows, candidates

    def _of_column(self, moved: IntArray, column: int) -> tuple[IntArray, IntArray]:
        """Return the pairs of one column that no column before it has."""
        counts = self._counts[moved[:, column]]
        candidates = np.repeat(np.arange(len(moved)), counts)
        within = np.arange(len(candidates)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = self._rows[self._starts[moved[candidates, column]] + within]
        new = np.ones(len(rows), dtype=bool)
        for earlier in range(column):  # positions, never nobody: those come last
            new &= ~self._active[rows, moved[candidates, earlier]]
        return rows[new], candidates[new]
