"""Every permutation, for small n: the oracle that other methods are measured against."""

from collections.abc import Iterator
from itertools import islice, permutations
from math import factorial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import IntArray, starting_permutation
from moe_localsearch._descent import improves
from moe_localsearch._objective import Objective
from moe_localsearch._questions import Questions
from moe_localsearch._result import SearchResult, StopReason, is_converged

MAX_SIZE = 8
"""8! is 40 320 costs; 9! is nine times that."""
PERMUTATIONS_PER_CALL = 1024

EXHAUSTIVE = "exhaustive"


def exhaustive(objective: Objective, start: ArrayLike | None = None) -> SearchResult:
    """Evaluate every permutation and return the best.

    Parameters
    ----------
    objective : Objective
        Cost to minimise, of at most 8 entries.
    start : array, shape (n,), integer, optional
        Kept unless another permutation is strictly better; the identity by default.

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
    questions = Questions(objective)
    if questions.size > MAX_SIZE:
        msg = (
            f"`objective.size` must be <= {MAX_SIZE} for an exhaustive search, got "
            f"{questions.size}: {factorial(questions.size)} permutations."
        )
        raise ValueError(msg)
    best = starting_permutation(start, questions.size)
    cost_before = cost = questions.cost(best)
    saw_trouble = not cost > -np.inf
    for batch in [] if np.isnan(cost) else _all_permutations(questions.size):
        costs = questions.costs(batch)
        usable = costs > -np.inf
        saw_trouble |= not usable.all()
        lowest = int(np.argmin(np.where(usable, costs, np.inf)))
        if improves(costs[lowest], cost):
            best, cost = batch[lowest], float(costs[lowest])
    stop_reason = StopReason.NON_FINITE_COST if saw_trouble else StopReason.OPTIMUM
    return SearchResult(
        permutation=best,
        cost_before=cost_before,
        cost_after=cost,
        num_evaluations=questions.num_evaluations,
        converged=is_converged(stop_reason),
        method=EXHAUSTIVE,
        stop_reason=stop_reason,
    )


def _all_permutations(size: int) -> Iterator[IntArray]:
    """Yield batches of permutations in lexicographic order."""
    remaining = permutations(range(size))
    while batch := list(islice(remaining, PERMUTATIONS_PER_CALL)):
        yield np.array(batch, dtype=np.int64)
