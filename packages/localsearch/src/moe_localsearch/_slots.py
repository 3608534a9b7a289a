"""A permutation for each slot (tree, selector, task), by coordinate descent over the slots."""

import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._changes import standard_error_of
from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    RealArray,
    check_callable,
    check_count,
    check_finite,
    check_permutations,
    check_real,
    check_shape,
    check_standard_errors,
)
from moe_localsearch._confirm import confirmed
from moe_localsearch._descent import improves
from moe_localsearch._progress import ProgressCallback, SearchProgress
from moe_localsearch._relabeling import RelabelingObjective
from moe_localsearch._result import SearchResult, StopReason, is_converged
from moe_localsearch._rows import (
    RowGradient,
    RowLoss,
    on_selected_rows,
    row_losses,
    split_rows,
)
from moe_localsearch._search import Method, check_method, search

METHOD = "relabel_slots"


class _Problem(NamedTuple):
    """A mixture of several slots, each with its own permutation of the same experts."""

    slot_weights: RealArray  # (T, K, n)
    outputs: RealArray  # (T, n, O)
    row_loss: RowLoss
    row_gradient: RowGradient | None

    def on_rows(self, rows: IntArray) -> "_Problem":
        """Return the problem on some of its rows, which are copied."""
        gradient = self.row_gradient
        return _Problem(
            self.slot_weights[rows],
            self.outputs[rows],
            on_selected_rows(self.row_loss, rows),
            None if gradient is None else on_selected_rows(gradient, rows),
        )

    def slot(self, index: int, offset: FloatArray | None = None) -> RelabelingObjective:
        """Return the objective of one slot's permutation, the others being `offset`."""
        return RelabelingObjective(
            self.slot_weights[:, index],
            self.outputs,
            self.row_loss,
            offset=offset,
            row_gradient=self.row_gradient,
        )

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
    row_gradient: RowGradient | None = None,
    method: Method = "auto",
    max_sweeps: int = 10,
    move_standard_errors: float = 0.0,
    confirm_rows: ArrayLike | None = None,
    num_standard_errors: float = 1.0,
    progress: ProgressCallback | None = None,
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
    row_gradient : callable, optional
        As for `RelabelingObjective`.
    method : str
        As for `search`, for each slot.
    max_sweeps : int
        Most sweeps, >= 1.
    move_standard_errors : float
        As for `search`, for each slot's moves.
    confirm_rows : array, shape (T,) boolean, or distinct integers in [0, T), optional
        Rows kept from the search, on which the gain must show; see `search`. At least one, and
        at least one must be left to search.
    num_standard_errors : float
        Confirmed where the mean paired gain is positive and above this many of its standard
        errors; finite and >= 0.
    progress : callable, optional
        Called with a `SearchProgress` before each question, whose cost is that of all slots
        together. It may raise StopIteration: what was found so far is confirmed and returned.

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
    problem = _checked_problem(slot_weights, outputs, row_loss, row_gradient)
    num_rows, num_slots, size = problem.slot_weights.shape
    if permutations is None:
        start = np.tile(np.arange(size), (num_slots, 1))
    else:
        start = check_permutations("permutations", permutations, size=size)
        check_shape("permutations", start, [("K", num_slots), ("n", size)])
    check_method(method)
    max_sweeps = check_count("max_sweeps", max_sweeps, minimum=1)
    check_standard_errors("move_standard_errors", move_standard_errors)
    check_standard_errors("num_standard_errors", num_standard_errors)
    if progress is not None:
        check_callable("progress", progress)
    searched, confirm = split_rows("confirm_rows", confirm_rows, num_rows=num_rows)
    options = (method, move_standard_errors, progress)
    if confirm is None:
        return _Descent(problem, start, *options).run(max_sweeps)
    descent = _Descent(problem.on_rows(searched), start, *options)
    result = confirmed(
        descent.run(max_sweeps),
        start,
        problem.on_rows(confirm).row_costs,
        descent.recost,
        num_standard_errors=num_standard_errors,
    )
    return replace(result, seconds=descent.seconds())


def _checked_problem(
    slot_weights: ArrayLike,
    outputs: ArrayLike,
    row_loss: RowLoss,
    row_gradient: RowGradient | None,
) -> _Problem:
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
    if row_gradient is not None:
        check_callable("row_gradient", row_gradient)
    return _Problem(weights, values, row_loss, row_gradient)


class _Descent:
    """Coordinate descent over the slots, and what it has cost."""

    def __init__(
        self,
        problem: _Problem,
        start: IntArray,
        method: Method,
        move_standard_errors: float,
        progress: ProgressCallback | None,
    ) -> None:
        self._problem = problem
        self._current = start.copy()
        self._method = method
        self._move_standard_errors = move_standard_errors
        self._progress = progress
        self._began = time.perf_counter()
        self._rows_before = self._rows = problem.row_costs(start)
        self._cost = float(self._rows_before.mean())
        self._num_evaluations = 1

    def seconds(self) -> float:
        """Return the wall time since the search began."""
        return time.perf_counter() - self._began

    def run(self, max_sweeps: int) -> SearchResult:
        """Sweep over the slots until a whole sweep changes nothing."""
        cost_before = self._cost
        stop_reason = StopReason.MAX_ROUNDS
        for _ in range(max_sweeps):
            before = self._cost
            reasons = self._sweep()
            if StopReason.STOPPED in reasons:
                stop_reason = StopReason.STOPPED
                break
            if not self._cost < before:
                trouble = StopReason.NON_FINITE_COST
                stop_reason = trouble if trouble in reasons else StopReason.LOCAL_OPTIMUM
                break
        return SearchResult(
            permutation=self._current,
            cost_before=cost_before,
            cost_after=self._cost,
            num_evaluations=self._num_evaluations,
            seconds=self.seconds(),
            converged=is_converged(stop_reason),
            method=METHOD,
            stop_reason=stop_reason,
            standard_error=self._gain_standard_error(self._rows),
        )

    def recost(self, permutations: IntArray) -> tuple[float, float]:
        """Return the cost on the search rows, and the standard error of its gain."""
        rows = self._problem.row_costs(permutations)
        return float(rows.mean()), self._gain_standard_error(rows)

    def _gain_standard_error(self, rows: FloatArray) -> float:
        with np.errstate(invalid="ignore"):
            return standard_error_of(self._rows_before - rows)

    def _sweep(self) -> set[StopReason]:
        """Search each slot once, and return why these searches stopped."""
        reasons: set[StopReason] = set()
        for slot in range(len(self._current)):
            reasons.add(self._improve(slot))
            if StopReason.STOPPED in reasons:
                break
        return reasons

    def _improve(self, slot: int) -> StopReason:
        """Search one slot with the others held, and keep what lowers the cost of all."""
        offset = self._problem.mixed(self._current, without=slot)
        step = search(
            self._problem.slot(slot, offset),
            self._current[slot],
            method=self._method,
            move_standard_errors=self._move_standard_errors,
            progress=None if self._progress is None else self._report,
        )
        self._num_evaluations += step.num_evaluations
        proposal = self._current.copy()
        proposal[slot] = step.permutation
        if not np.array_equal(proposal, self._current):
            rows = self._problem.row_costs(proposal)
            self._num_evaluations += 1
            if improves(float(rows.mean()), self._cost):
                self._current, self._cost, self._rows = proposal, float(rows.mean()), rows
        return step.stop_reason

    def _report(self, of_slot: SearchProgress) -> None:
        """Tell of all slots what one slot's search tells of itself."""
        assert self._progress is not None
        num_evaluations = self._num_evaluations + of_slot.num_evaluations
        self._progress(SearchProgress(METHOD, of_slot.cost, num_evaluations, self.seconds()))
