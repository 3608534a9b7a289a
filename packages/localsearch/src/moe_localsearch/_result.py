"""What a search returns."""

from dataclasses import dataclass
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
    """The allowed rounds (sweeps, steps) were used up while the cost was still dropping."""
    NON_FINITE_COST = "non_finite_cost"
    """A cost that had to be compared was NaN or infinite; such a cost is never accepted."""
    STOPPED = "stopped"
    """The progress callback raised StopIteration."""
    PARTLY_CONFIRMED = "partly_confirmed"
    """Parts of the gain did not show on the confirmation rows, and were undone."""
    NOT_CONFIRMED = "not_confirmed"
    """The gain did not show on the confirmation rows, so the start is returned."""


class Confirmation(NamedTuple):
    """Whether a gain shows on rows that the search has not seen.

    `cost_before` and `cost_after` are the mean costs on these rows of the start and of what is
    kept. `gain` is the mean over the rows of their differences, positive is
    better, and `standard_error` that of this paired mean, infinite below two rows. All are in
    the unit of the cost. `accepted` is True where `gain` is positive and above the chosen
    number of standard errors. `num_undone` counts positions that were put back to the start,
    because their part of the gain did not show.
    """

    cost_before: float
    cost_after: float
    gain: float
    standard_error: float
    accepted: bool
    num_undone: int = 0


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
        `swap_costs`, 1 for each candidate of `changes` and each `relaxed_cost`. As many full
        evaluations would have told the same, so where cheap questions are offered this
        bounds the work from above. Confirmation is not counted.
    seconds : float
        Wall time of the search, in seconds, confirmation included.
    converged : bool
        Whether the method ran to its end: an optimum, or a local one.
    method : str
        The methods that ran, in order, joined by ``" + "``.
    stop_reason : StopReason
        Why the search stopped, as a string that can be compared and logged.
    standard_error : float or None
        That of ``cost_before - cost_after``, paired over the search rows; None where the
        objective offers no `row_costs`. The search chose the permutation on these rows, so it
        says how noisy the gain is, not how likely: for that, see `confirmation`.
    confirmation : Confirmation or None
        The paired comparison on the confirmation rows, where they were given.
    """

    permutation: IntArray
    cost_before: float
    cost_after: float
    num_evaluations: int
    seconds: float
    converged: bool
    method: str
    stop_reason: StopReason
    standard_error: float | None = None
    confirmation: Confirmation | None = None


class Outcome(NamedTuple):
    """Where one method ended: its best permutation, its cost, and why it stopped."""

    permutation: IntArray
    cost: float
    stop_reason: StopReason


def is_converged(stop_reason: StopReason) -> bool:
    """Whether a method that stopped for this reason ran to its end."""
    return stop_reason in {StopReason.OPTIMUM, StopReason.LOCAL_OPTIMUM}
