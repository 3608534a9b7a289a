"""Run one or several methods on an objective, each from where the last one ended."""

from collections.abc import Callable, Sequence

import numpy as np

from moe_localsearch._changes import standard_error_of
from moe_localsearch._checks import IntArray
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult, StopReason, is_converged

Phase = tuple[str, Callable[[Questions, IntArray, float], Outcome]]
"""The name of a method, and what it makes of a permutation and its cost."""


def run(questions: Questions, start: IntArray, phases: Sequence[Phase]) -> SearchResult:
    """Run the phases and put together what they found."""
    cost_before = questions.cost_quietly(start)
    outcome = Outcome(start, cost_before, StopReason.LOCAL_OPTIMUM)
    saw_trouble = False
    for name, phase in phases:
        questions.method = f"{questions.method} + {name}" if questions.method else name
        questions.best_cost = outcome.cost
        outcome = phase(questions, outcome.permutation, outcome.cost)
        saw_trouble |= outcome.stop_reason is StopReason.NON_FINITE_COST
        if outcome.stop_reason in {StopReason.STOPPED, StopReason.OPTIMUM}:
            break
    stopped = outcome.stop_reason is StopReason.STOPPED
    stop_reason = outcome.stop_reason
    if saw_trouble and not stopped:
        stop_reason = StopReason.NON_FINITE_COST
    return SearchResult(
        permutation=outcome.permutation,
        cost_before=cost_before,
        cost_after=outcome.cost,
        num_evaluations=questions.num_evaluations,
        seconds=questions.seconds(),
        converged=is_converged(stop_reason),
        method=questions.method,
        stop_reason=stop_reason,
        standard_error=gain_standard_error(questions, start, outcome.permutation),
    )


def gain_standard_error(questions: Questions, start: IntArray, found: IntArray) -> float | None:
    """Return the standard error of the gain over the search rows, where there are rows."""
    before = questions.row_costs(start)
    if before is None or np.array_equal(start, found):
        return None if before is None else 0.0
    after = questions.row_costs(found)
    assert after is not None
    with np.errstate(invalid="ignore"):
        return standard_error_of(before - after)
