"""Swap descent: exchange pairs of positions while that lowers the exact cost."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._changes import Changes, are_gains
from moe_localsearch._checks import IntArray, check_count, starting_permutation
from moe_localsearch._descent import Proposal, descend
from moe_localsearch._moves import exchanged, three_cycles
from moe_localsearch._objective import Objective
from moe_localsearch._progress import ProgressCallback
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult
from moe_localsearch._run import run

SWAPS = "descend_by_swaps"
TRIPLES_PER_POSITION = 2
"""Triples of positions, for each position, whose 3-cycles are tried where no swap helps."""


def descend_by_swaps(
    objective: Objective,
    start: ArrayLike | None = None,
    *,
    max_rounds: int = 100,
    move_standard_errors: float = 0.0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Exchange pairs of positions while that lowers the cost, then rotate triples.

    Each round asks for the exact cost of every swap and takes the better of the best swap
    and of all improving swaps together that share no position, best first. Where no swap
    improves, it tries both rotations of the 2 n triples whose swaps cost least.

    Parameters
    ----------
    objective : Objective
        Cost to minimise. Without `changes` or `swap_costs` every swap is evaluated in full; with
        `move_standard_errors` and without `changes`, by the row costs of one after the other.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    max_rounds : int
        Most rounds, >= 1.
    move_standard_errors : float
        A move is taken where its paired gain over the rows is positive and above this many of
        its standard errors; finite and >= 0. Above 0 it needs `row_costs`.
    progress : callable, optional
        Called with a `SearchProgress` before each question; may raise StopIteration.

    Returns
    -------
    SearchResult
        Never worse than `start`; when converged, no single swap lowers the cost (by so many
        standard errors).

    Raises
    ------
    TypeError
        If `objective` does not offer what is needed, or an option has the wrong type.
    ValueError
        If `start` is no permutation of n entries, or an answer has the wrong shape.

    Notes
    -----
    A NaN cost is never taken. Swaps with a usable cost are still tried, and where none of
    them improves the result says `StopReason.NON_FINITE_COST` instead of a local optimum.

    An objective that offers `changes` is allowed to leave a swap after a part of the rows once it
    is worse by 4 standard errors there; what is taken has always been evaluated on all rows.

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
    questions = Questions(objective, move_standard_errors=move_standard_errors, progress=progress)
    first = starting_permutation(start, questions.size)
    return run(questions, first, [(SWAPS, partial(swap_outcome, max_rounds=max_rounds))])


def swap_outcome(
    questions: Questions, start: IntArray, cost: float, *, max_rounds: int = 100
) -> Outcome:
    """Descend from `start`, whose cost is known."""
    propose = partial(_propose_swaps, questions)
    return descend(questions, start, cost, propose, max_rounds=max_rounds)


def _propose_swaps(questions: Questions, current: IntArray, cost: float) -> Proposal:
    """Return the best swap and, where there are several, all disjoint improving swaps at once."""
    changes = questions.swap_changes(current, cost)
    saw_trouble = not np.all(changes.mean > -np.inf)
    gains = np.flatnonzero(are_gains(changes, questions.move_standard_errors))
    if not len(gains):
        cycles = _gaining_cycles(questions, current, cost, changes)
        return Proposal(cycles, saw_trouble=saw_trouble)
    pairs = np.stack(np.triu_indices(len(current), 1), axis=1)
    best_first = pairs[gains[np.argsort(changes.mean[gains], kind="stable")]]
    together = current.copy()
    disjoint = _disjoint(best_first, len(current))
    for pair in disjoint:
        together[pair] = together[pair[::-1]]
    candidates = np.stack([exchanged(current, best_first[:1])[0], together])
    return Proposal(candidates[: min(len(disjoint), 2)], saw_trouble=saw_trouble)


def _disjoint(pairs: IntArray, size: int) -> IntArray:
    """Return the pairs that share no position with one before them."""
    taken = np.zeros(size, dtype=bool)
    kept = []
    for pair in pairs:
        if not taken[pair].any():
            taken[pair] = True
            kept.append(pair)
    return np.array(kept)


def _gaining_cycles(
    questions: Questions, current: IntArray, cost: float, swap_changes: Changes
) -> IntArray:
    """Return the best rotation of three positions, if one is a gain, shape (0 or 1, n)."""
    triples = _cheapest_triples(swap_changes, len(current))
    if not len(triples):
        return current[None][:0]
    candidates = three_cycles(current, triples)
    changes = questions.nearby_changes(current, cost, [candidates])
    gains = np.flatnonzero(are_gains(changes, questions.move_standard_errors))
    best = gains[np.argsort(changes.mean[gains], kind="stable")[:1]]
    return candidates[best]


def _cheapest_triples(swap_changes: Changes, size: int) -> IntArray:
    """Return the triples of positions whose three swaps cost the least together, (B, 3)."""
    # A rotation is two of the three swaps in a row. Those that hardly hurt alone are the
    # candidates: each triple is built from a cheap swap and the best third position for it.
    costs = np.full((size, size), np.inf)
    first, second = np.triu_indices(size, 1)
    usable = np.where(np.isfinite(swap_changes.mean), swap_changes.mean, np.inf)
    costs[first, second] = costs[second, first] = usable
    cheapest = np.argsort(usable, kind="stable")[: TRIPLES_PER_POSITION * size]
    triples = set()
    for i, j in zip(first[cheapest], second[cheapest], strict=True):
        with np.errstate(over="ignore"):
            third = costs[i] + costs[j]
        third[[i, j]] = np.inf
        k = int(np.argmin(third))
        if third[k] < np.inf:
            triples.add(tuple(sorted((int(i), int(j), k))))
    return np.array(sorted(triples), dtype=np.int64).reshape(-1, 3)
