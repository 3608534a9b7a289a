"""Keep of what a search found only what rows that the search has not seen confirm."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from moe_localsearch._changes import BoolArray, standard_error_of
from moe_localsearch._checks import FloatArray, IntArray
from moe_localsearch._result import Confirmation, SearchResult, StopReason

RowCosts = Callable[[IntArray], FloatArray]
"""The cost of each row, shape (T,), under a permutation (n,), or one a slot (K, n)."""
Recost = Callable[[IntArray], tuple[float, float | None]]
"""Cost on the search rows, and the standard error of its gain over the start."""


def confirmed(
    result: SearchResult,
    start: IntArray,
    row_costs: RowCosts,
    recost: Recost,
    *,
    num_standard_errors: float,
) -> SearchResult:
    """Return `result` without the parts whose gain does not show, or with the start in its place.

    The parts are the cycles in which positions have exchanged what they use: each can be undone
    alone. A search that mends one pair and fits noise with five others keeps the one.
    """
    found = result.permutation
    before = row_costs(start)
    kept, after = _without_doubtful_parts(found, start, row_costs, num_standard_errors)
    num_undone = int(np.sum(kept != found))
    confirmation = paired_gain(
        before, after, num_standard_errors=num_standard_errors, num_undone=num_undone
    )
    if np.array_equal(found, start):
        return replace(result, confirmation=confirmation)
    cost_after, standard_error = result.cost_after, result.standard_error
    stop_reason = result.stop_reason
    if num_undone:
        cost_after, standard_error = recost(kept)
        stop_reason = StopReason.PARTLY_CONFIRMED
    if confirmation.accepted and not cost_after > result.cost_before:
        return replace(
            result,
            permutation=kept,
            cost_after=cost_after,
            standard_error=standard_error,
            stop_reason=stop_reason,
            confirmation=confirmation,
        )
    return replace(
        result,
        permutation=start,
        cost_after=result.cost_before,
        standard_error=None if result.standard_error is None else 0.0,
        stop_reason=StopReason.NOT_CONFIRMED,
        confirmation=confirmation._replace(accepted=False),
    )


def paired_gain(
    before: FloatArray, after: FloatArray, *, num_standard_errors: float, num_undone: int = 0
) -> Confirmation:
    """Compare the costs of the same rows, shape (T,), before and after a search."""
    if not len(before):
        return Confirmation(np.nan, np.nan, 0.0, np.inf, accepted=False, num_undone=num_undone)
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, and is not accepted
        gains = before - after
        gain, cost_before, cost_after = (float(each.mean()) for each in (gains, before, after))
    standard_error = standard_error_of(gains)
    accepted = gain > num_standard_errors * standard_error
    return Confirmation(cost_before, cost_after, gain, standard_error, accepted, num_undone)


def _without_doubtful_parts(
    found: IntArray, start: IntArray, row_costs: RowCosts, num_standard_errors: float
) -> tuple[IntArray, FloatArray]:
    """Undo, one after the other, the parts without a confirmed gain; return the row costs too."""
    costs_found = row_costs(found)
    parts = _parts(start, found)
    if len(parts) < 2:
        return found, costs_found
    kept, costs = found, costs_found
    for part in parts:
        undone = np.where(part, start, kept)
        costs_undone = row_costs(undone)
        gain = paired_gain(costs_undone, costs, num_standard_errors=num_standard_errors)
        if not gain.accepted:
            kept, costs = undone, costs_undone
    if np.array_equal(kept, start):  # nothing is left to confirm: report what the search found
        return found, costs_found
    return kept, costs


def _parts(start: IntArray, found: IntArray) -> list[BoolArray]:
    """Return masks, of the shape of `start`, of the cycles that lead to `found`; short ones first.

    Within a cycle, positions use what others of the same cycle used; undoing one of them
    leaves a permutation.
    """
    parts = []
    for slot in np.ndindex(start.shape[:-1]):
        holder = np.argsort(start[slot])[found[slot]]  # who had what each position uses now
        unseen = holder != np.arange(len(holder))
        while unseen.any():
            part = np.zeros(start.shape, dtype=bool)
            position = int(np.argmax(unseen))
            while unseen[position]:
                unseen[position] = False
                part[slot][position] = True
                position = int(holder[position])
            parts.append(part)
    return sorted(parts, key=np.count_nonzero)
