"""Every permutation, for small n: the oracle that other methods are measured against."""

from collections.abc import Iterator
from itertools import islice, permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import IntArray, starting_permutation
from moe_localsearch._descent import improves, is_significant
from moe_localsearch._objective import Objective
from moe_localsearch._progress import ProgressCallback, SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult, StopReason
from moe_localsearch._run import run

MAX_SIZE = 8
"""8! is 40 320 costs; 9! is nine times that."""
PERMUTATIONS_PER_CALL = 1024

EXHAUSTIVE = "exhaustive"


def exhaustive(
    objective: Objective,
    start: ArrayLike | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Evaluate every permutation and return the best.

    Parameters
    ----------
    objective : Objective
        Cost to minimise, of at most 8 entries.
    start : array, shape (n,), integer, optional
        Kept unless another permutation is strictly better; the identity by default.
    progress : callable, optional
        Called with a `SearchProgress` before each 1024 evaluations; may raise StopIteration.

    Returns
    -------
    SearchResult
        A global optimum: among several `start`, otherwise the first in lexicographic order.

    Raises
    ------
    ValueError
        If there are more than 8 entries.

    Notes
    -----
    A NaN or -inf cost is never taken; `StopReason.NON_FINITE_COST` says that there was one.

    Examples
    --------
    >>> import numpy as np
    >>> class Disorder:
    ...     size = 4
    ...     def __call__(self, permutations):
    ...         return np.abs(permutations - np.arange(4)).mean(axis=1)
    >>> exhaustive(Disorder(), start=[3, 2, 1, 0]).permutation
    array([0, 1, 2, 3])
    """
    questions = Questions(objective, progress=progress)
    check_exhaustive(questions.size)
    first = starting_permutation(start, questions.size)
    return run(questions, first, [(EXHAUSTIVE, exhaustive_outcome)])


def check_exhaustive(size: int) -> None:
    """Refuse more permutations than can be evaluated."""
    if size > MAX_SIZE:
        msg = (
            f"`objective.size` must be <= {MAX_SIZE} for an exhaustive search, got "
            f"{size}: {factorial(size)} permutations."
        )
        raise ValueError(msg)


def exhaustive_outcome(questions: Questions, start: IntArray, cost: float) -> Outcome:
    """Return the best of all permutations, or `start` where none is better."""
    if np.isnan(cost):
        return Outcome(start, cost, StopReason.NON_FINITE_COST)
    best, cost_before, saw_trouble = start, cost, not cost > -np.inf
    for batch in _all_permutations(questions.size):
        try:
            costs = questions.costs(batch)
        except SearchStopped:
            return Outcome(best, cost, StopReason.STOPPED)
        usable = costs > -np.inf
        saw_trouble |= not usable.all()
        lowest = int(np.argmin(np.where(usable, costs, np.inf)))
        if improves(costs[lowest], cost):
            best, cost = batch[lowest], float(costs[lowest])
            questions.best_cost = cost
    if not is_significant(questions, start, best):
        best, cost = start, cost_before
    return Outcome(best, cost, StopReason.NON_FINITE_COST if saw_trouble else StopReason.OPTIMUM)


def _all_permutations(size: int) -> Iterator[IntArray]:
    """Yield batches of permutations in lexicographic order."""
    remaining = permutations(range(size))
    while batch := list(islice(remaining, PERMUTATIONS_PER_CALL)):
        yield np.array(batch, dtype=np.int64)
