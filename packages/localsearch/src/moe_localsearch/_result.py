"""What a search returns."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from moe_localsearch._checks import IntArray


class StopReason(StrEnum):
    """Why a search stopped."""

    OPTIMUM = "optimum"
    """No permutation has a lower cost on the search rows."""
    LOCAL_OPTIMUM = "local_optimum"
    """No move that the method knows lowers the cost."""
    MAX_ROUNDS = "max_rounds"
    """The allowed rounds (or sweeps) were used up while the cost was still dropping."""
    NON_FINITE_COST = "non_finite_cost"
    """A cost that had to be compared was NaN or infinite; such a cost is never accepted."""
    NOT_CONFIRMED = "not_confirmed"
    """The gain did not show on the confirmation rows, so the start is returned."""


class Confirmation(NamedTuple):
    """Whether a gain shows on rows that the search has not seen.

    `gain` is the mean over the confirmation rows of (cost of the row at the start - cost
    of the row after the search), in the unit of the cost; positive is better.
    `standard_error` is that of this mean of paired differences, infinite below two rows.
    `accepted` is True where `gain` is positive and above the chosen number of them.
    """

    gain: float
    standard_error: float
    accepted: bool


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The permutation that a search found, never worse than its start, and how.

    Attributes
    ----------
    permutation : array, shape (n,), int64
        ``permutation[i]`` is what position ``i`` uses; shape (K, n) from `relabel_slots`.
    cost_before, cost_after : float
        Cost of the start and of `permutation` on the search rows, in the objective's unit.
    num_evaluations : int
        Costs that the search was told: 1 for each permutation that the objective was called
        with, n (n - 1) for each answer of `replacement_costs`, n (n - 1) / 2 for each of
        `swap_costs`. As many full evaluations would have told the same, so where cheap
        questions are offered this bounds the work from above. Confirmation is not counted.
    converged : bool
        Whether the method ran to its end: an optimum, or a local one.
    method : str
        The methods that ran, in order, joined by ``" + "``.
    stop_reason : StopReason
        Why the search stopped, as a string that can be compared and logged.
    confirmation : Confirmation or None
        The paired comparison on the confirmation rows, where one was asked for.
    """

    permutation: IntArray
    cost_before: float
    cost_after: float
    num_evaluations: int
    converged: bool
    method: str
    stop_reason: StopReason
    confirmation: Confirmation | None = None


def is_converged(stop_reason: StopReason) -> bool:
    """Whether a method that stopped for this reason ran to its end."""
    return stop_reason in {StopReason.OPTIMUM, StopReason.LOCAL_OPTIMUM}


def chained(first: SearchResult, second: SearchResult) -> SearchResult:
    """Return the result of `second`, which began where `first` ended, as that of both."""
    trouble = StopReason.NON_FINITE_COST
    stop_reason = trouble if first.stop_reason is trouble else second.stop_reason
    return replace(
        second,
        cost_before=first.cost_before,
        num_evaluations=first.num_evaluations + second.num_evaluations,
        converged=is_converged(stop_reason),
        method=f"{first.method} + {second.method}",
        stop_reason=stop_reason,
    )
