"""Swap descent: exchange pairs of positions while that lowers the exact cost."""

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import IntArray, check_count, starting_permutation
from moe_localsearch._descent import Proposal, descend
from moe_localsearch._objective import Objective
from moe_localsearch._questions import Questions
from moe_localsearch._result import SearchResult

SWAPS = "descend_by_swaps"


def descend_by_swaps(
    objective: Objective, start: ArrayLike | None = None, *, max_rounds: int = 100
) -> SearchResult:
    """Exchange pairs of positions while that lowers the cost.

    Each round asks for the exact cost of every swap and takes the better of the best swap
    and of all improving swaps together that share no position, best first.

    Parameters
    ----------
    objective : Objective
        Cost to minimise. Without `swap_costs` every swap is evaluated in full.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    max_rounds : int
        Most rounds, >= 1.

    Returns
    -------
    SearchResult
        Never worse than `start`; when converged, no single swap lowers the cost.

    Raises
    ------
    ValueError
        If `start` is no permutation of n entries, or an answer has the wrong shape.

    Notes
    -----
    A NaN cost is never taken. Swaps with a usable cost are still tried, and where none of
    them improves the result says `StopReason.NON_FINITE_COST` instead of a local optimum.

    Examples
    --------
    >>> import numpy as np
    >>> class Disorder:
    ...     size = 5
    ...     def __call__(self, permutations):
    ...         return np.abs(permutations - np.arange(5)).mean(axis=1)
    >>> descend_by_swaps(Disorder(), start=[4, 0, 1, 2, 3]).permutation
    array([0, 1, 2, 3, 4])
    """
    max_rounds = check_count("max_rounds", max_rounds, minimum=1)
    questions = Questions(objective)
    current = starting_permutation(start, questions.size)

    def propose(current: IntArray, cost: float) -> Proposal:
        return propose_swaps(questions, current, cost)

    return descend(questions, current, propose, max_rounds=max_rounds, method=SWAPS)


def propose_swaps(questions: Questions, current: IntArray, cost: float) -> Proposal:
    """Return the best swap and, where there are several, all disjoint improving swaps at once."""
    costs = questions.swap_costs(current)
    improving = np.flatnonzero((costs < cost) & (costs > -np.inf))
    order = improving[np.argsort(costs[improving], kind="stable")]
    first, second = np.triu_indices(len(current), 1)
    best, together = current.copy(), current.copy()
    moved = np.zeros(len(current), dtype=bool)
    for rank, pair in enumerate(order):
        i, j = first[pair], second[pair]
        if not (moved[i] or moved[j]):
            moved[[i, j]] = True
            together[[i, j]] = together[[j, i]]
        if rank == 0:
            best = together.copy()
    num_candidates = min(moved.sum() // 2, 2)  # none, the best alone, or both
    saw_trouble = not np.all(costs > -np.inf)
    return Proposal(np.stack([best, together])[:num_candidates], saw_trouble=saw_trouble)
