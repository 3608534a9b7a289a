"""Which expert each id of a hash gate uses: an assignment with capacities, not a permutation."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._capacity import assign_with_capacity, check_capacity
from moe_localsearch._changes import BoolArray, standard_error_of
from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    RealArray,
    check_finite,
    check_integers,
    check_real,
    check_standard_errors,
)
from moe_localsearch._confirm import paired_gain
from moe_localsearch._result import Confirmation, StopReason
from moe_localsearch._rows import split_rows

STAY = 1e-10
"""Share of its own cost by which an id prefers the expert that it has: ids that no row tells
anything about, or that gain only rounding, then stay."""
PRIOR_ROWS = 2
"""Rows that the variance of all ids counts for beside an id's own: two equal rows are no proof of
certainty, and a single one has no variance."""


@dataclass(frozen=True, eq=False)
class IdAssignment:
    """The table that `assign_ids` found, never worse than its start, and how.

    Attributes
    ----------
    table : array, shape (N,), int64
        Expert of each id.
    cost_before, cost_after : float
        Mean cost of the search rows with the start and with `table`.
    standard_error : float
        That of ``cost_before - cost_after``, paired over the search rows.
    num_moved : int
        Ids whose expert has changed.
    prices : array, shape (E,)
        Sum of row costs that one more place in each expert would save at most; 0 where there
        is room.
    seconds : float
        Wall time, in seconds.
    stop_reason : StopReason
        ``OPTIMUM``, or ``NOT_CONFIRMED`` where `table` is the start.
    confirmation : Confirmation or None
        The paired comparison on the confirmation rows, where they were given.
    """

    table: IntArray
    cost_before: float
    cost_after: float
    standard_error: float
    num_moved: int
    prices: FloatArray
    seconds: float
    stop_reason: StopReason
    confirmation: Confirmation | None = None


def assign_ids(
    ids: ArrayLike,
    row_costs: ArrayLike,
    /,
    *,
    table: ArrayLike,
    capacity: ArrayLike | None = None,
    move_standard_errors: float = 0.0,
    confirm_rows: ArrayLike | None = None,
    num_standard_errors: float = 1.0,
) -> IdAssignment:
    """Give each id the expert that suits its rows, none more ids than its capacity.

    The cost of an id with an expert is the sum over its rows, so the best table is one
    transportation problem, whatever the loss: a strict superset of permuting the experts.
    For several tasks call it once a task, or once with the sum of their costs for a table that
    they share.

    Parameters
    ----------
    ids : array, shape (T,), integer
        Id of each row, in [0, N).
    row_costs : array, shape (T, E), real, finite
        Cost of each row if each expert had it: one pass over the experts.
    table : array, shape (N,), integer
        Expert of each id now, in [0, E).
    capacity : int, or array, shape (E,), integer, optional
        Most ids in each expert; by default the largest number that one has now.
    move_standard_errors : float
        A move of an id counts as worse by this many standard errors of what it changes, so that
        rare ids do not follow noise; finite and >= 0. An id with few rows takes most of its
        variance from all ids.
    confirm_rows : array, shape (T,) boolean, or distinct integers in [0, T), optional
        Rows kept from the search, on which the gain must show.
    num_standard_errors : float
        Confirmed where the mean paired gain is positive and above this many of its standard
        errors; finite and >= 0.

    Returns
    -------
    IdAssignment
        A global optimum on the search rows (with `move_standard_errors` 0), or `table` where
        the gain is not confirmed. Ids without rows stay, unless their place is wanted.

    Raises
    ------
    TypeError
        If an array does not hold what it should.
    ValueError
        If shapes disagree, a value is out of range, or `table` is above `capacity` already.

    Examples
    --------
    >>> import numpy as np
    >>> ids = np.array([0, 0, 1, 1, 2, 2])
    >>> likes = np.array([1, 1, 0, 0, 1, 1])  # the rows of ids 0 and 2 suit expert 1
    >>> row_costs = 1.0 * (likes[:, None] != np.arange(2))
    >>> assign_ids(ids, row_costs, table=[0, 1, 1]).table
    array([1, 0, 1])
    """
    began = time.perf_counter()
    costs = check_real("row_costs", row_costs, ["T", "E"])
    check_finite("row_costs", costs)
    num_rows, num_experts = costs.shape
    if num_rows < 1 or num_experts < 1:
        msg = f"`row_costs` must have T >= 1 rows and E >= 1 experts, got shape {costs.shape}."
        raise ValueError(msg)
    start = _check_indices("table", table, ("N", None), num_experts)
    row_ids = _check_indices("ids", ids, ("T", num_rows), len(start))
    places = _check_places(capacity, start, num_experts)
    check_standard_errors("move_standard_errors", move_standard_errors)
    check_standard_errors("num_standard_errors", num_standard_errors)
    searched, confirming = split_rows("confirm_rows", confirm_rows, num_rows=num_rows)

    changes = _changes(row_ids[searched], costs[searched], start, move_standard_errors)
    found = assign_with_capacity(changes, capacity=places)

    def costs_of(rows: IntArray, chosen: IntArray) -> FloatArray:
        return costs[rows, chosen[row_ids[rows]]].astype(np.float64)

    kept, stop_reason, confirmation = found.columns, StopReason.OPTIMUM, None
    if confirming is not None:
        before, after = costs_of(confirming, start), costs_of(confirming, kept)
        confirmation = paired_gain(before, after, num_standard_errors=num_standard_errors)
        if not confirmation.accepted and not np.array_equal(kept, start):
            kept, stop_reason = start, StopReason.NOT_CONFIRMED
    before, after = costs_of(searched, start), costs_of(searched, kept)
    return IdAssignment(
        table=kept,
        cost_before=float(before.mean()),
        cost_after=float(after.mean()),
        standard_error=standard_error_of(before - after),
        num_moved=int(np.sum(kept != start)),
        prices=found.prices,
        seconds=time.perf_counter() - began,
        stop_reason=stop_reason,
        confirmation=confirmation,
    )


def _changes(
    ids: IntArray, row_costs: RealArray, table: IntArray, num_standard_errors: float
) -> FloatArray:
    """Return what moving each id to each expert costs, shape (N, E), pessimistically."""
    rows = np.arange(len(ids))
    num_ids, num_experts = len(table), row_costs.shape[1]
    current = row_costs[rows, table[ids]].astype(np.float64)
    count = np.bincount(ids, minlength=num_ids).astype(np.float64)
    sums = np.empty((num_ids, num_experts))
    for expert in range(num_experts):
        change = row_costs[:, expert] - current
        sums[:, expert] = np.bincount(ids, change, minlength=num_ids)
        if num_standard_errors > 0:
            variance = _variances(ids, change, count, sums[:, expert], table != expert)
            sums[:, expert] += num_standard_errors * np.sqrt(count * variance)
    of_ids = np.bincount(ids, np.abs(current), minlength=num_ids)
    # An id without costs prefers to stay as much as others do, or by any amount if none has.
    of_ids = np.where(of_ids > 0, of_ids, of_ids.mean() or 1.0)
    sums += STAY * (np.abs(sums) + of_ids[:, None])
    sums[np.arange(num_ids), table] = 0.0
    return sums


def _variances(
    ids: IntArray, changes: FloatArray, count: FloatArray, sums: FloatArray, moves: BoolArray
) -> FloatArray:
    """Return the variance of the changes of each id's rows, shape (N,), shrunk to that of all.

    `moves`, shape (N,), marks the ids that have another expert: the changes of the others are 0,
    and say nothing of the noise.
    """
    squares = np.bincount(ids, changes**2, minlength=len(count)).astype(np.float64)
    within = np.maximum(squares - sums**2 / np.maximum(count, 1), 0)
    freedom = np.maximum(count - 1, 0)
    # Where every id has a single row, the differences between ids are all there is to go by.
    if freedom[moves].any():
        pooled = within[moves].sum() / freedom[moves].sum()
    else:
        moved = changes[moves[ids]]
        pooled = moved.var() if len(moved) else 0.0
    variance: FloatArray = (within + PRIOR_ROWS * pooled) / (freedom + PRIOR_ROWS)
    return variance


def _check_indices(
    name: str, value: ArrayLike, axis: tuple[str, int | None], limit: int
) -> IntArray:
    """Return a fresh int64 copy of a vector with entries in [0, limit)."""
    array = check_integers(name, value)
    axis_name, length = axis
    if array.ndim != 1 or array.shape[0] != (array.shape[0] if length is None else length):
        allowed = axis_name if length is None else f"{axis_name}={length}"
        msg = f"`{name}` must have shape ({allowed},), got {array.shape}."
        raise ValueError(msg)
    outside = array[(array < 0) | (array >= limit)]
    if len(outside):
        msg = f"`{name}` must be in [0, {limit}), got {outside[0]}."
        raise ValueError(msg)
    return array.astype(np.int64)


def _check_places(capacity: ArrayLike | None, table: IntArray, num_experts: int) -> IntArray:
    """Return the capacities, which `table` has to respect already."""
    load = np.bincount(table, minlength=num_experts)
    if capacity is None:
        return np.full(num_experts, load.max(initial=0))
    places = check_capacity(capacity, len(table), num_experts)
    over = np.flatnonzero(load > places)
    if len(over):
        expert = int(over[0])
        msg = (
            f"`table` must respect `capacity`, {places[expert]} for expert {expert}, "
            f"got {load[expert]} ids there."
        )
        raise ValueError(msg)
    return places
