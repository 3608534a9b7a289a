"""Relabelling experts: the cost of which expert each position of a gate uses."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    RealArray,
    check_callable,
    check_finite,
    check_permutation,
    check_permutations,
    check_real,
    check_shape,
)
from moe_localsearch._rows import (
    RowLoss,
    check_rows,
    on_selected_rows,
    row_losses,
)

ELEMENTS_PER_CALL = 2**21
"""Entries of mixed output in one call of the loss: 16 MiB of float64."""


class _Base(NamedTuple):
    """The state that replacements and swaps are changes of."""

    mixed: FloatArray  # (T, O)
    losses: FloatArray  # (T,)


class RelabelingObjective:
    """Mean loss of a mixture whose position ``i`` uses expert ``permutation[i]``.

    ``mixed[t] = offset[t] + sum_i slot_weights[t, i] * outputs[t, permutation[i]]``, from
    expert outputs that were computed once. Replacement and swap costs are exact, and are
    evaluated on the rows that the position has a non-zero weight in, nowhere else.

    Parameters
    ----------
    slot_weights : array, shape (T, n), real, finite
        Dimensionless weight of position ``i`` in row ``t``; T >= 1 and n >= 1.
    outputs : array, shape (T, n, O), real
        Output of each expert for each row.
    row_loss : callable
        ``row_loss(mixed (R, O) float64, rows (R,) int64) -> (R,)``: any loss of one row.
    offset : array, shape (T, O), real, optional
        What the rest of the model, such as the other slots, adds to `mixed`.

    Raises
    ------
    TypeError
        If an array does not hold real numbers, or `row_loss` is not callable.
    ValueError
        If shapes disagree, there are no rows, or a weight is not finite.

    Notes
    -----
    Arithmetic is in float64 whatever the inputs' dtypes, and the inputs are not copied. A
    non-finite output or loss makes the costs that it enters non-finite, and no others.

    Row losses per question, for P non-zero weights in all: T for a cost, at most P (n - 1) for
    all replacements and for all swaps. Memory beyond the inputs: (T, n) booleans, a few
    (T, O), a few blocks of 16 MiB, and for swaps at most 2 T n integers; never (T, n, n).

    Examples
    --------
    >>> import numpy as np
    >>> outputs = np.array([[[0.0], [1.0]], [[0.0], [1.0]]])
    >>> targets = np.array([[1.0], [0.0]])
    >>> cost = RelabelingObjective(
    ...     np.eye(2), outputs, lambda mixed, rows: np.sum((mixed - targets[rows]) ** 2, axis=1)
    ... )
    >>> cost(np.array([[0, 1], [1, 0]]))
    array([1., 0.])
    """

    def __init__(
        self,
        slot_weights: ArrayLike,
        outputs: ArrayLike,
        row_loss: RowLoss,
        *,
        offset: ArrayLike | None = None,
    ) -> None:
        self._weights = check_real("slot_weights", slot_weights, ["T", "n"])
        self._outputs = check_real("outputs", outputs, ["T", "n", "O"])
        num_rows, size = self._weights.shape
        num_outputs = self._outputs.shape[2]
        if num_rows < 1:
            msg = f"`slot_weights` must have T >= 1 rows, got shape {self._weights.shape}."
            raise ValueError(msg)
        if size < 1:
            msg = f"`slot_weights` must have n >= 1 positions, got shape {self._weights.shape}."
            raise ValueError(msg)
        check_finite("slot_weights", self._weights)
        check_shape("outputs", self._outputs, [("T", num_rows), ("n", size), ("O", num_outputs)])
        self._offset = None
        if offset is not None:
            self._offset = check_real("offset", offset, ["T", "O"])
            check_shape("offset", self._offset, [("T", num_rows), ("O", num_outputs)])
        check_callable("row_loss", row_loss)
        self._row_loss = row_loss
        self._active = self._weights != 0

    @property
    def size(self) -> int:
        """Positions, which is also the number of experts."""
        return int(self._weights.shape[1])

    @property
    def separable(self) -> bool:
        """Whether each row has at most one non-zero weight: one assignment is optimal."""
        return bool(np.all(self._active.sum(axis=1) <= 1))

    def __call__(self, permutations: ArrayLike, /) -> FloatArray:
        """Return the mean loss, shape (B,), of each permutation, shape (B, n)."""
        batch = check_permutations("permutations", permutations, size=self.size)
        check_shape("permutations", batch, [("B", len(batch)), ("n", self.size)])
        return np.array([self._base(each).losses.mean() for each in batch])

    def mixed(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the mixed outputs, shape (T, O), float64, offset included."""
        experts = check_permutation("permutation", permutation, size=self.size)
        num_rows, _, num_outputs = self._outputs.shape
        total = np.zeros((num_rows, num_outputs))
        if self._offset is not None:
            total += self._offset
        for position, expert in enumerate(experts):
            rows = np.flatnonzero(self._active[:, position])
            weight = self._weights[rows, position, None].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                total[rows] += weight * self._outputs[rows, expert]
        return total

    def row_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the loss, shape (T,), of each row."""
        return self._base(permutation).losses

    def replacement_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the exact cost, shape (n, n), when position ``i`` alone uses expert ``j``."""
        experts = check_permutation("permutation", permutation, size=self.size)
        base = self._base(experts)
        changes = np.zeros((self.size, self.size))
        for position in range(self.size):
            others = np.delete(np.arange(self.size), experts[position])
            rows = np.flatnonzero(self._active[:, position])
            for block in self._blocks(len(rows) * len(others)):
                row, new = rows[block // len(others)], others[block % len(others)]
                weight = self._weights[row, position]
                change = self._loss_changes(base, row, weight, experts[position], new)
                changes[position] += np.bincount(new, change, minlength=self.size)
        return float(base.losses.mean()) + changes / len(base.losses)

    def swap_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the exact cost, shape (n, n), after exchanging positions ``i`` and ``j``."""
        experts = check_permutation("permutation", permutation, size=self.size)
        base = self._base(experts)
        changes = np.zeros((self.size, self.size))
        for first in range(self.size - 1):
            touched = self._active[:, first + 1 :] | self._active[:, first, None]
            rows, second = np.nonzero(touched)
            second += first + 1
            for block in self._blocks(len(rows)):
                row, other = rows[block], second[block]
                weight = np.subtract(
                    self._weights[row, first], self._weights[row, other], dtype=np.float64
                )
                change = self._loss_changes(base, row, weight, experts[first], experts[other])
                changes[first] += np.bincount(other, change, minlength=self.size)
        return float(base.losses.mean()) + (changes + changes.T) / len(base.losses)

    def on_rows(self, rows: ArrayLike, /) -> "RelabelingObjective":
        """Return the objective on one or more rows, by a mask (T,) or distinct integers.

        Copies these rows of the arrays. `row_loss` is still told of rows by their index here.
        """
        selected = check_rows("rows", rows, num_rows=len(self._weights))
        return RelabelingObjective(
            self._weights[selected],
            self._outputs[selected],
            on_selected_rows(self._row_loss, selected),
            offset=None if self._offset is None else self._offset[selected],
        )

    def _base(self, permutation: ArrayLike) -> _Base:
        """Return the mixed outputs and the losses of all rows."""
        mixed = self.mixed(permutation)
        return _Base(mixed, row_losses(self._row_loss, mixed, np.arange(len(mixed))))

    def _loss_changes(
        self, base: _Base, rows: IntArray, weights: RealArray, old: IntArray, new: IntArray
    ) -> FloatArray:
        """Return by how much each row's loss changes if `weights` moves from `old` to `new`.

        All arguments after `base` have shape (R,), `old` and `new` may be scalars.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            change = self._outputs[rows, new].astype(np.float64) - self._outputs[rows, old]
            mixed = base.mixed[rows] + weights.astype(np.float64)[:, None] * change
            return row_losses(self._row_loss, mixed, rows) - base.losses[rows]

    def _blocks(self, num_pairs: int) -> Iterator[IntArray]:
        """Yield the indices of as many (row, expert) pairs as one call of the loss takes."""
        length = max(1, ELEMENTS_PER_CALL // max(1, self._outputs.shape[2]))
        for begin in range(0, num_pairs, length):
            yield np.arange(begin, min(begin + length, num_pairs))
