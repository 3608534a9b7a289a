"""Frank-Wolfe: assignments on the gradient of the cost between permutations."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._assign import assign
from moe_localsearch._checks import IntArray, check_count, starting_permutation
from moe_localsearch._descent import Incumbent
from moe_localsearch._objective import SupportsRelaxation
from moe_localsearch._progress import ProgressCallback, SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult, StopReason
from moe_localsearch._run import run

FRANK_WOLFE = "frank_wolfe"
MAX_ROUNDS = 10
RELATIVE_GAP = 1e-3
"""Stop where no permutation promises more than this share of the cost."""


def frank_wolfe(
    objective: SupportsRelaxation,
    start: ArrayLike | None = None,
    *,
    max_rounds: int = MAX_ROUNDS,
    move_standard_errors: float = 0.0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Minimise the cost between permutations, and return the best permutation met.

    It begins half way between all permutations, where every position uses everything
    equally. Each round assigns on the gradient there, evaluates the permutation found, and
    moves towards it as far as a parabola through what is known says. The last point is
    rounded. The head of the model is evaluated twice a round, whatever the number of positions.

    Parameters
    ----------
    objective : SupportsRelaxation
        Cost to minimise, with `differentiable` True.
    start : array, shape (n,), integer, optional
        What the result has to beat; the identity by default. The path does not depend on it.
    max_rounds : int
        Most rounds, >= 1. One is often within a few per cent, ten are rarely too few.
    move_standard_errors : float
        The permutation found replaces `start` where its paired gain over the rows is above this
        many of its standard errors; finite and >= 0. Above 0 it needs `row_costs`.
    progress : callable, optional
        Called with a `SearchProgress` before each question; may raise StopIteration.

    Returns
    -------
    SearchResult
        Never worse than `start`. Converged where the relaxed cost cannot drop by more than 0.1 %
        along any direction: if the relaxed cost is convex, as for a convex loss of a linear
        head, its optimum is that near. No promise about the permutation, but swaps from there
        start well: see `search`.

    Raises
    ------
    TypeError
        If `objective` is not differentiable, or an option has the wrong type.
    ValueError
        If `start` is no permutation of n entries, or an answer has the wrong shape.

    References
    ----------
    Vogelstein et al., PLOS ONE 10(4), 2015, arXiv:1112.5507: the same for quadratic assignment.

    Examples
    --------
    >>> from moe_localsearch.testing import planted_problem
    >>> problem = planted_problem(num_rows=900, size=8, num_nonzero=2, seed=0)
    >>> result = frank_wolfe(problem.objective)
    >>> (result.permutation == problem.permutation).all(), result.num_evaluations < 30
    (np.True_, True)
    """
    max_rounds = check_count("max_rounds", max_rounds, minimum=1)
    questions = Questions(objective, move_standard_errors=move_standard_errors, progress=progress)
    first = starting_permutation(start, questions.size)
    return run(
        questions, first, [(FRANK_WOLFE, partial(frank_wolfe_outcome, max_rounds=max_rounds))]
    )


def frank_wolfe_outcome(
    questions: Questions, start: IntArray, cost: float, *, max_rounds: int = MAX_ROUNDS
) -> Outcome:
    """Return the best permutation met, or `start` where none is better."""
    best = Incumbent(questions, start, cost)
    if np.isnan(cost):
        return Outcome(start, cost, StopReason.NON_FINITE_COST)
    try:
        stop_reason = _follow(questions, best, max_rounds)
    except SearchStopped:
        stop_reason = StopReason.STOPPED
    return Outcome(best.permutation, best.cost, stop_reason)


def _follow(questions: Questions, best: Incumbent, max_rounds: int) -> StopReason:
    size = questions.size
    matrix = np.full((size, size), 1 / size)
    stop_reason = StopReason.MAX_ROUNDS
    for _ in range(max_rounds):
        cost, gradient = questions.relaxed_cost(matrix)
        if not (np.isfinite(cost) and np.isfinite(gradient).all()):
            return StopReason.NON_FINITE_COST
        target = assign(gradient)
        direction = np.eye(size)[target] - matrix
        slope = float(np.sum(gradient * direction))
        if -slope <= RELATIVE_GAP * abs(cost):
            stop_reason = StopReason.LOCAL_OPTIMUM
            break
        matrix = matrix + _step(cost, slope, best.meet(target)) * direction
    rounded = assign(-matrix)
    if not np.array_equal(rounded, best.permutation):
        best.meet(rounded)
    return stop_reason


def _step(cost: float, slope: float, cost_at_end: float) -> float:
    """Minimise over [0, 1] the parabola with this value and slope at 0 and value at 1."""
    if not np.isfinite(cost_at_end):  # no parabola; to stay would be to ask the same again
        return 0.5
    curvature = cost_at_end - cost - slope
    if not curvature > 0:  # not convex: the whole step or none
        return 1.0 if cost_at_end < cost else 0.0
    return min(1.0, -slope / (2 * curvature))
