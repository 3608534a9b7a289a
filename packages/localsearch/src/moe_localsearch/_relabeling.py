"""Relabelling experts: the cost of which expert each position of a gate uses."""

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._changes import Changes, ChangeSums, joined
from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    check_callable,
    check_choices,
    check_finite,
    check_permutation,
    check_permutations,
    check_real,
    check_shape,
    check_square,
)
from moe_localsearch._moves import PER_PART, other_entries, replacements, swaps
from moe_localsearch._objective import RelaxedCost
from moe_localsearch._rows import (
    RowGradient,
    RowLoss,
    check_rows,
    on_selected_rows,
    row_gradients,
    row_losses,
)
from moe_localsearch._terms import ActiveRows, Terms, add_terms, terms

ELEMENTS_PER_CALL = 2**21
"""Entries of mixed output in one call of the loss: 16 MiB of float64."""
FIRST_ROWS = 512
"""Rows after which hopeless candidates are first given up; then four times as many, and so on."""
NUM_REMEMBERED = 3
"""Permutations whose mixed outputs are kept: the current one and the two best proposals."""


class _Base(NamedTuple):
    """The state that candidates are changes of."""

    mixed: FloatArray  # (T, O)
    losses: FloatArray  # (T,)


class RelabelingObjective:
    """Mean loss of a mixture whose position ``i`` uses expert ``permutation[i]``.

    ``mixed[t] = offset[t] + sum_i slot_weights[t, i] * outputs[t, permutation[i]]``, from
    expert outputs that were computed once. What a move costs is exact, and is evaluated on the
    rows in which the positions that move have a non-zero weight, nowhere else.

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
    row_gradient : callable, optional
        ``row_gradient(mixed (R, O), rows (R,)) -> (R, O)``: the gradient of `row_loss` with
        respect to `mixed`. It makes the objective `differentiable`, and the search faster.

    Raises
    ------
    TypeError
        If an array does not hold real numbers, or `row_loss` or `row_gradient` is not callable.
    ValueError
        If shapes disagree, there are no rows, or a weight is not finite.

    Notes
    -----
    Arithmetic is in float64 whatever the inputs' dtypes, and the inputs are not copied. A
    non-finite output or loss makes the costs that it enters non-finite, and no others.

    Row losses per question, for P non-zero weights in all: T for a cost, at most P (n - 1) for
    all replacements and for all swaps, fewer where `changes` gives up early; T for
    `relaxed_cost`. The last three permutations are remembered. Memory beyond the inputs:
    (T, n) booleans, 2 P integers, a few (T, O), a few blocks of 16 MiB and of 1024 n integers;
    never (T, n, n).

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
        row_gradient: RowGradient | None = None,
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
        if row_gradient is not None:
            check_callable("row_gradient", row_gradient)
        self._row_gradient = row_gradient
        self._active = self._weights != 0
        self._remembered: dict[bytes, _Base] = {}

    @property
    def size(self) -> int:
        """Positions, which is also the number of experts."""
        return int(self._weights.shape[1])

    @property
    def separable(self) -> bool:
        """Whether each row has at most one non-zero weight: one assignment is optimal."""
        return bool(np.all(self._active.sum(axis=1) <= 1))

    @property
    def differentiable(self) -> bool:
        """Whether a `row_gradient` was given, so that `relaxed_cost` can be asked."""
        return self._row_gradient is not None

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
        experts = check_permutation("permutation", permutation, size=self.size)
        return self._base(experts).losses.copy()

    def replacement_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the exact cost, shape (n, n), when position ``i`` alone uses expert ``j``."""
        experts = check_permutation("permutation", permutation, size=self.size)
        changes = np.zeros((self.size, self.size))
        answers = joined(self.changes(experts, part) for part in replacements(experts))
        changes[other_entries(experts)] = answers.mean
        return float(self._base(experts).losses.mean()) + changes

    def swap_costs(self, permutation: ArrayLike, /) -> FloatArray:
        """Return the exact cost, shape (n, n), after exchanging positions ``i`` and ``j``."""
        experts = check_permutation("permutation", permutation, size=self.size)
        changes = np.zeros((self.size, self.size))
        answers = joined(self.changes(experts, part) for part in swaps(experts))
        changes[np.triu_indices(self.size, 1)] = answers.mean
        return float(self._base(experts).losses.mean()) + (changes + changes.T)

    def changes(
        self, permutation: ArrayLike, candidates: ArrayLike, /, *, give_up_at: float = np.inf
    ) -> Changes:
        """Return by how much the cost of each candidate differs, shapes (B,).

        `candidates`, shape (B, n), hold experts and need not be permutations. Rows are taken in
        a fixed random order; after 512, 2560, ... of them, a candidate that costs more by over
        `give_up_at` standard errors is left: not `exact`, its numbers are those of these rows.
        """
        experts = check_permutation("permutation", permutation, size=self.size)
        choices = check_choices("candidates", candidates, size=self.size)
        base = self._base(experts)
        parts = [choices[begin : begin + PER_PART] for begin in range(0, len(choices), PER_PART)]
        return joined(self._race(base, terms(experts, part), give_up_at) for part in parts)

    def relaxed_cost(self, matrix: ArrayLike, /) -> RelaxedCost:
        """Return the loss where position ``i`` mixes all experts by ``matrix[i]``, and gradient.

        Raises
        ------
        TypeError
            If no `row_gradient` was given.
        """
        if self._row_gradient is None:
            msg = "`row_gradient` must be given to the objective for `relaxed_cost`, got None."
            raise TypeError(msg)
        shares = check_real("matrix", matrix, ["n", "n"]).astype(np.float64)
        check_square("matrix", shares)
        check_shape("matrix", shares, [("n", self.size), ("n", self.size)])
        num_rows = len(self._weights)
        cost, gradient = 0.0, np.zeros_like(shares)
        for rows in self._blocks(num_rows, self.size * self._outputs.shape[2]):
            weights = self._weights[rows].astype(np.float64)
            outputs = self._outputs[rows].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                mixed = ((weights @ shares)[:, None, :] @ outputs)[:, 0]
                if self._offset is not None:
                    mixed += self._offset[rows]
                cost += row_losses(self._row_loss, mixed.copy(), rows).sum() / num_rows
                slopes = row_gradients(self._row_gradient, mixed, rows)
                gradient += weights.T @ (outputs @ slopes[:, :, None])[:, :, 0] / num_rows
        return RelaxedCost(cost, gradient)

    def on_rows(self, rows: ArrayLike, /) -> "RelabelingObjective":
        """Return the objective on one or more rows, by a mask (T,) or distinct integers.

        Copies these rows of the arrays. `row_loss` is still told of rows by their index here.
        """
        selected = check_rows("rows", rows, num_rows=len(self._weights))
        gradient = self._row_gradient
        return RelabelingObjective(
            self._weights[selected],
            self._outputs[selected],
            on_selected_rows(self._row_loss, selected),
            offset=None if self._offset is None else self._offset[selected],
            row_gradient=None if gradient is None else on_selected_rows(gradient, selected),
        )

    def _base(self, permutation: IntArray) -> _Base:
        """Return the mixed outputs and the losses of all rows."""
        key = permutation.tobytes()
        if key not in self._remembered:
            mixed = self.mixed(permutation)
            # A copy: a loss may work in place, and the mixed outputs are needed again.
            losses = row_losses(self._row_loss, mixed.copy(), np.arange(len(mixed)))
            while len(self._remembered) >= NUM_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[key] = _Base(mixed, losses)
        return self._remembered[key]

    def _race(self, base: _Base, of_candidates: Terms, give_up_at: float) -> Changes:
        """Evaluate the candidates on more and more rows, but those that are left behind."""
        sums = ChangeSums(len(of_candidates.moved))
        running = np.arange(len(of_candidates.moved))
        for stage in self._every_row if give_up_at == np.inf else self._stages:
            for some in self._shares(stage.most(of_candidates.moved[running])):
                rows, candidates = stage.pairs(of_candidates.moved[running[some]])
                candidates = running[some][candidates]
                change = self._loss_changes(base, rows, of_candidates.of(candidates))
                sums.add(candidates, change)
            sums.num_rows[running] += stage.num_rows
            mean, standard_error = sums.changes()
            with np.errstate(invalid="ignore"):
                hopeless = mean[running] > give_up_at * standard_error[running]
            running = running[~hopeless]
        return Changes(mean, standard_error, sums.num_rows == len(base.losses))

    def _loss_changes(self, base: _Base, rows: IntArray, of_rows: Terms) -> FloatArray:
        """Return by how much the loss of each of `rows`, shape (R,), changes by its terms."""
        mixed = base.mixed[rows]
        add_terms(mixed, self._weights, self._outputs, rows, of_rows)
        with np.errstate(invalid="ignore", over="ignore"):
            return row_losses(self._row_loss, mixed, rows) - base.losses[rows]

    @cached_property
    def _every_row(self) -> list[ActiveRows]:
        return [ActiveRows(self._active, np.arange(len(self._weights)))]

    @cached_property
    def _stages(self) -> list[ActiveRows]:
        """The rows in a random order, in parts of growing length."""
        num_rows = len(self._weights)
        order = np.random.default_rng(0).permutation(num_rows)
        ends = [0]
        while ends[-1] < num_rows:
            ends.append(min(num_rows, ends[-1] + FIRST_ROWS * 4 ** (len(ends) - 1)))
        return [ActiveRows(self._active, np.sort(order[i:j])) for i, j in pairwise(ends)]

    def _shares(self, lengths: IntArray) -> Iterator[slice]:
        """Yield consecutive candidates that have a block of mixed output together, one at least."""
        step = max(1, ELEMENTS_PER_CALL // max(1, self._outputs.shape[2]))
        ends = np.cumsum(lengths)
        begin = 0
        while begin < len(lengths):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + step, side="right")))
            yield slice(begin, end)
            begin = end

    @staticmethod
    def _blocks(length: int, width: int) -> Iterator[IntArray]:
        """Yield the indices of a long axis in parts that hold a block of entries each."""
        step = max(1, ELEMENTS_PER_CALL // max(1, width))
        for begin in range(0, length, step):
            yield np.arange(begin, min(begin + step, length))
