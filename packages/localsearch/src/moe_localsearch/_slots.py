"""A permutation for each slot (tree, selector, task), by coordinate descent over the slots."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    RealArray,
    check_callable,
    check_count,
    check_finite,
    check_num_standard_errors,
    check_permutations,
    check_real,
    check_shape,
)
from moe_localsearch._confirm import keep_if_confirmed, paired_gain
from moe_localsearch._descent import improves
from moe_localsearch._relabeling import RelabelingObjective
from moe_localsearch._result import SearchResult, StopReason, is_converged
from moe_localsearch._rows import RowLoss, check_rows, on_selected_rows, row_losses
from moe_localsearch._search import search

METHOD = "relabel_slots"


class _Problem(NamedTuple):
    """A mixture of several slots, each with its own permutation of the same experts."""

    slot_weights: RealArray  # (T, K, n)
    outputs: RealArray  # (T, n, O)
    row_loss: RowLoss

    def on_rows(self, rows: IntArray) -> "_Problem":
        """Return the problem on some of its rows, which are copied."""
        row_loss = on_selected_rows(self.row_loss, rows)
        return _Problem(self.slot_weights[rows], self.outputs[rows], row_loss)

    def slot(self, index: int, offset: FloatArray | None = None) -> RelabelingObjective:
        """Return the objective of one slot's permutation, the others being `offset`."""
        weights = self.slot_weights[:, index]
        return RelabelingObjective(weights, self.outputs, self.row_loss, offset=offset)

    def mixed(self, permutations: IntArray, *, without: int | None = None) -> FloatArray:
        """Return the sum of the slots' outputs, shape (T, O)."""
        num_rows, _, num_outputs = self.outputs.shape
        total = np.zeros((num_rows, num_outputs))
        for index, permutation in enumerate(permutations):
            if index != without:
                total += self.slot(index).mixed(permutation)
        return total

    def row_costs(self, permutations: IntArray) -> FloatArray:
        """Return the loss of each row, shape (T,)."""
        rows = np.arange(len(self.outputs))
        return row_losses(self.row_loss, self.mixed(permutations), rows)


def relabel_slots(
    slot_weights: ArrayLike,
    outputs: ArrayLike,
    row_loss: RowLoss,
    *,
    permutations: ArrayLike | None = None,
    max_sweeps: int = 10,
    confirm_rows: ArrayLike | None = None,
    num_standard_errors: float = 1.0,
) -> SearchResult:
    """Give each slot its own permutation of the experts, one slot after the other.

    ``mixed[t] = sum_k sum_i slot_weights[t, k, i] * outputs[t, permutations[k, i]]``. A slot is
    searched with the others held fixed, and its permutation kept only if the cost of all
    together drops; a sweep visits each slot once.

    Parameters
    ----------
    slot_weights : array, shape (T, K, n), real, finite
        Dimensionless weight of position ``i`` of slot ``k`` in row ``t``; T, K, n >= 1. Where a
        slot has at most one non-zero in each row, its step is a global optimum given the others.
    outputs : array, shape (T, n, O), real
        Output of each expert for each row.
    row_loss : callable
        As for `RelabelingObjective`.
    permutations : array, shape (K, n), integer, optional
        Where to begin; identities by default.
    max_sweeps : int
        Most sweeps, >= 1.
    confirm_rows : array, shape (T,) boolean, or distinct integers in [0, T), optional
        Rows kept from the search, on which the gain must show; see `search`. At least one, and
        at least one must be left to search.
    num_standard_errors : float
        Confirmed where the mean paired gain is positive and above this many of its standard
        errors; finite and >= 0.

    Returns
    -------
    SearchResult
        `permutation` has shape (K, n). Never worse than the start on the search rows, and
        the start itself where the gain is not confirmed. When converged, no slot's search
        lowers the cost while the others are held.

    Raises
    ------
    TypeError
        If an array has the wrong kind of dtype, or `row_loss` is not callable.
    ValueError
        If shapes disagree, a weight is not finite, or an argument is out of range.

    Notes
    -----
    Memory beyond that of one `RelabelingObjective`: a few (T, O) float64, and with
    `confirm_rows` a copy of the inputs.

    Examples
    --------
    >>> from moe_localsearch.testing import planted_slots
    >>> planted = planted_slots(num_rows=400, num_slots=2, size=4, num_nonzero=1, seed=0)
    >>> weights, outputs, row_loss = planted.slot_weights, planted.outputs, planted.row_loss
    >>> result = relabel_slots(weights, outputs, row_loss, confirm_rows=range(300, 400))
    >>> result.permutation.shape, result.confirmation.accepted
    ((2, 4), True)
    """
    problem = _checked_problem(slot_weights, outputs, row_loss)
    num_rows, num_slots, size = problem.slot_weights.shape
    if permutations is None:
        start = np.tile(np.arange(size), (num_slots, 1))
    else:
        start = check_permutations("permutations", permutations, size=size)
        check_shape("permutations", start, [("K", num_slots), ("n", size)])
    max_sweeps = check_count("max_sweeps", max_sweeps, minimum=1)
    check_num_standard_errors(num_standard_errors)
    if confirm_rows is None:
        return _descend(problem, start, max_sweeps)
    confirm = check_rows("confirm_rows", confirm_rows, num_rows=num_rows)
    if len(confirm) == num_rows:
        msg = f"`confirm_rows` must leave rows to search, got all T={num_rows}."
        raise ValueError(msg)
    result = _descend(problem.on_rows(np.delete(np.arange(num_rows), confirm)), start, max_sweeps)
    unseen = problem.on_rows(confirm)
    before, after = unseen.row_costs(start), unseen.row_costs(result.permutation)
    confirmation = paired_gain(before, after, num_standard_errors=num_standard_errors)
    return keep_if_confirmed(result, start, confirmation)


def _checked_problem(slot_weights: ArrayLike, outputs: ArrayLike, row_loss: RowLoss) -> _Problem:
    weights = check_real("slot_weights", slot_weights, ["T", "K", "n"])
    values = check_real("outputs", outputs, ["T", "n", "O"])
    num_rows, num_slots, size = weights.shape
    if num_rows < 1:
        msg = f"`slot_weights` must have T >= 1 rows, got shape {weights.shape}."
        raise ValueError(msg)
    if num_slots < 1 or size < 1:
        msg = f"`slot_weights` must have K >= 1 and n >= 1, got shape {weights.shape}."
        raise ValueError(msg)
    check_finite("slot_weights", weights)
    check_shape("outputs", values, [("T", num_rows), ("n", size), ("O", values.shape[2])])
    check_callable("row_loss", row_loss)
    return _Problem(weights, values, row_loss)


def _descend(problem: _Problem, start: IntArray, max_sweeps: int) -> SearchResult:
    """Sweep over the slots until a whole sweep changes nothing."""
    current = start.copy()
    cost_before = cost = float(problem.row_costs(current).mean())
    num_evaluations = 1
    stop_reason = StopReason.MAX_ROUNDS
    for _ in range(max_sweeps):
        moved = saw_trouble = False
        for index in range(len(current)):
            offset = problem.mixed(current, without=index)
            step = search(problem.slot(index, offset), current[index])
            saw_trouble |= step.stop_reason is StopReason.NON_FINITE_COST
            proposal = current.copy()
            proposal[index] = step.permutation
            new_cost = float(problem.row_costs(proposal).mean())
            num_evaluations += step.num_evaluations + 1
            if improves(new_cost, cost):
                current, cost, moved = proposal, new_cost, True
        if not moved:
            stop_reason = StopReason.NON_FINITE_COST if saw_trouble else StopReason.LOCAL_OPTIMUM
            break
    return SearchResult(
        permutation=current,
        cost_before=cost_before,
        cost_after=cost,
        num_evaluations=num_evaluations,
        converged=is_converged(stop_reason),
        method=METHOD,
        stop_reason=stop_reason,
    )
