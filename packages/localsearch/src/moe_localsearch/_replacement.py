"""Replace and assign: exact costs of every single replacement, then one linear assignment."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._assign import assign
from moe_localsearch._changes import pessimistic
from moe_localsearch._checks import IntArray, check_count, starting_permutation
from moe_localsearch._descent import Proposal, descend
from moe_localsearch._moves import other_entries
from moe_localsearch._objective import SupportsChanges, SupportsReplacementCosts
from moe_localsearch._progress import ProgressCallback
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult, StopReason
from moe_localsearch._run import run

ASSIGN = "assign"
REPLACEMENT = "replace_and_assign"
# Share of the cost and of a change below which a gain is rounding: a position stays as it is.
TIE = 1e-12


def replace_and_assign(
    objective: SupportsReplacementCosts | SupportsChanges,
    start: ArrayLike | None = None,
    *,
    max_rounds: int = 100,
    move_standard_errors: float = 0.0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Move every position at once, as if the moves did not interact, while that lowers the cost.

    Each round asks for the exact cost of every single replacement, solves the linear
    assignment over them, and keeps the solution only if its exact cost is lower.

    Parameters
    ----------
    objective : SupportsReplacementCosts or SupportsChanges
        Cost to minimise.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    max_rounds : int
        Most rounds, >= 1. Each lowers the cost or is the last; a handful is usual.
    move_standard_errors : float
        The assignment counts each replacement as worse by this many standard errors of its
        paired change (where the objective offers `changes`), and a round is taken where its own
        paired gain is above as many; finite and >= 0. Above 0 it needs `row_costs`.
    progress : callable, optional
        Called with a `SearchProgress` before each question; may raise StopIteration.

    Returns
    -------
    SearchResult
        Never worse than `start`. A global optimum if the objective is separable and
        `move_standard_errors` is 0; otherwise a point that one more assignment does not
        lower, which swaps may still improve.

    Raises
    ------
    TypeError
        If `objective` offers neither `replacement_costs` nor `changes`.
    ValueError
        If `start` is no permutation of n entries, or an answer has the wrong shape.

    Notes
    -----
    A NaN or infinite replacement cost ends the search with `StopReason.NON_FINITE_COST`.

    Examples
    --------
    >>> from moe_localsearch.testing import planted_problem
    >>> problem = planted_problem(num_rows=200, size=6, num_nonzero=1, seed=0)
    >>> result = replace_and_assign(problem.objective)
    >>> result.cost_after < result.cost_before, str(result.stop_reason)
    (True, 'local_optimum')
    """
    max_rounds = check_count("max_rounds", max_rounds, minimum=1)
    questions = Questions(objective, move_standard_errors=move_standard_errors, progress=progress)
    first = starting_permutation(start, questions.size)
    return run(
        questions, first, [(REPLACEMENT, partial(replacement_outcome, max_rounds=max_rounds))]
    )


def replacement_outcome(
    questions: Questions, start: IntArray, cost: float, *, max_rounds: int = 100
) -> Outcome:
    """Descend from `start`, whose cost is known."""
    propose = partial(_propose_assignment, questions)
    return descend(questions, start, cost, propose, max_rounds=max_rounds)


def assign_outcome(questions: Questions, start: IntArray, cost: float) -> Outcome:
    """Solve a separable objective: its one assignment is the optimum, whether or not it moved."""
    if questions.move_standard_errors:  # what it counts as worse depends on where it is
        return replacement_outcome(questions, start, cost)
    outcome = replacement_outcome(questions, start, cost, max_rounds=1)
    if outcome.stop_reason in {StopReason.NON_FINITE_COST, StopReason.STOPPED}:
        return outcome
    return outcome._replace(stop_reason=StopReason.OPTIMUM)


def _propose_assignment(questions: Questions, current: IntArray, cost: float) -> Proposal:
    """Return the assignment over all single replacements, unless it is `current`."""
    nothing = current[None][:0]
    changes = questions.replacement_changes(current, cost)
    worse = pessimistic(changes, questions.move_standard_errors)
    if not np.isfinite(worse).all():
        return Proposal(nothing, saw_trouble=True)
    # A position that no row gives weight to costs the same anywhere: it must not wander. What
    # is rounding is each replacement's own matter: one that is bad beyond measure is no other's.
    bias = TIE * (np.abs(worse) + (abs(cost) if np.isfinite(cost) else 0.0))
    costs = np.zeros((len(current), len(current)))
    costs[other_entries(current)] = worse + bias
    found = assign(costs)
    unchanged = np.array_equal(found, current)
    return Proposal(nothing if unchanged else found[None], saw_trouble=False)
