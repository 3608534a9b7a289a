"""Replace and assign: exact costs of every single replacement, then one linear assignment."""

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._assign import assign
from moe_localsearch._checks import IntArray, check_count, starting_permutation
from moe_localsearch._descent import Proposal, descend
from moe_localsearch._objective import SupportsReplacementCosts
from moe_localsearch._questions import Questions
from moe_localsearch._result import SearchResult

REPLACEMENT = "replace_and_assign"
# Share of the largest cost below which a gain is rounding: a position then stays as it is.
TIE = 1e-12


def replace_and_assign(
    objective: SupportsReplacementCosts, start: ArrayLike | None = None, *, max_rounds: int = 100
) -> SearchResult:
    """Move every position at once, as if the moves did not interact, while that lowers the cost.

    Each round asks for the exact cost of every single replacement, solves the linear
    assignment over them, and keeps the solution only if its exact cost is lower.

    Parameters
    ----------
    objective : SupportsReplacementCosts
        Cost to minimise.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    max_rounds : int
        Most rounds, >= 1. Each lowers the cost or is the last; a handful is usual.

    Returns
    -------
    SearchResult
        Never worse than `start`. A global optimum if the objective is separable; otherwise
        a point that one more assignment does not lower, which swaps may still improve.

    Raises
    ------
    TypeError
        If `objective` does not offer `replacement_costs`.
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
    questions = Questions(objective)
    current = starting_permutation(start, questions.size)

    def propose(current: IntArray, _cost: float) -> Proposal:
        return propose_assignment(questions, current)

    return descend(questions, current, propose, max_rounds=max_rounds, method=REPLACEMENT)


def propose_assignment(questions: Questions, current: IntArray) -> Proposal:
    """Return the assignment over all single replacements, unless it is `current`."""
    nothing = current[None][:0]
    costs = questions.replacement_costs(current)
    if not np.isfinite(costs).all():
        return Proposal(nothing, saw_trouble=True)
    # A position that no row gives weight to costs the same anywhere: it must not wander.
    bias = TIE * np.abs(costs).max(initial=0.0)
    costs = costs + bias
    costs[np.arange(len(current)), current] -= bias
    found = assign(costs)
    unchanged = np.array_equal(found, current)
    return Proposal(nothing if unchanged else found[None], saw_trouble=False)
