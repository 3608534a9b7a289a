"""Simulated annealing over swaps, for objectives with many local optima."""

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import (
    IntArray,
    check_count,
    check_seed,
    starting_permutation,
)
from moe_localsearch._descent import Incumbent
from moe_localsearch._moves import exchanged
from moe_localsearch._objective import Objective
from moe_localsearch._progress import ProgressCallback, SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, SearchResult, StopReason
from moe_localsearch._run import Phase, run
from moe_localsearch._swaps import SWAPS, swap_outcome

ANNEAL = "anneal"
STEPS_PER_POSITION = 200
NUM_SAMPLES = 50
"""Random swaps of the start that set the first temperature."""
COOLING = 0.1
"""Last temperature as a share of the first; of 0.001 to 0.1 the best in quadratic assignment with 8
and 20 positions. The descent that follows does the rest."""


def anneal(
    objective: Objective,
    start: ArrayLike | None = None,
    *,
    num_steps: int | None = None,
    seed: int = 0,
    move_standard_errors: float = 0.0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Take random swaps, worse ones too while it is hot, then descend by swaps.

    The first temperature is the median size of what random swaps change at the start; it
    falls geometrically to a tenth. The best permutation met is where the descent begins.

    Parameters
    ----------
    objective : Objective
        Cost to minimise. With `changes` a step only touches the rows of two positions.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    num_steps : int, optional
        Swaps tried, >= 1; 200 n by default.
    seed : int
        Equal seeds give equal results.
    move_standard_errors : float
        What annealing found replaces `start`, and each swap of the descent is taken, where the
        paired gain is above this many of its standard errors; finite and >= 0. Above 0 it needs
        `row_costs`.
    progress : callable, optional
        Called with a `SearchProgress` before each question; may raise StopIteration.

    Returns
    -------
    SearchResult
        Never worse than `start`; when converged, no single swap lowers the cost.

    Raises
    ------
    TypeError
        If `objective` does not offer what is needed, or an option has the wrong type.
    ValueError
        If `start` is no permutation of n entries, or an option is out of range.

    References
    ----------
    Kirkpatrick, Gelatt, Vecchi, Science 220(4598), 1983.

    Examples
    --------
    >>> import numpy as np
    >>> class Disorder:
    ...     size = 5
    ...     def __call__(self, permutations):
    ...         return np.abs(permutations - np.arange(5)).mean(axis=1)
    >>> anneal(Disorder(), start=[4, 0, 1, 2, 3], num_steps=100).permutation
    array([0, 1, 2, 3, 4])
    """
    if num_steps is not None:
        check_count("num_steps", num_steps, minimum=1)
    check_seed(seed)
    questions = Questions(objective, move_standard_errors=move_standard_errors, progress=progress)
    first = starting_permutation(start, questions.size)
    phases: list[Phase] = [
        (ANNEAL, partial(anneal_outcome, num_steps=num_steps, seed=seed)),
        (SWAPS, swap_outcome),
    ]
    return run(questions, first, phases)


def anneal_outcome(
    questions: Questions, start: IntArray, cost: float, *, num_steps: int | None = None, seed: int
) -> Outcome:
    """Return the best permutation met, or `start` where none is better."""
    if np.isnan(cost):
        return Outcome(start, cost, StopReason.NON_FINITE_COST)
    if len(start) < 2:
        return Outcome(start, cost, StopReason.LOCAL_OPTIMUM)
    if cost == np.inf:  # there is no walk: what a swap changes is infinite, too
        out = swap_outcome(questions, start, cost, max_rounds=1)
        if not out.cost < np.inf or out.stop_reason is StopReason.STOPPED:
            return out
        start, cost = out.permutation, out.cost
    rng = np.random.default_rng(seed)
    walk, stop_reason = _Walk(questions, start, cost), StopReason.MAX_ROUNDS
    try:
        hottest = walk.typical_change(_random_pairs(rng, len(start), NUM_SAMPLES))
        pairs = _random_pairs(rng, len(start), num_steps or STEPS_PER_POSITION * len(start))
        temperatures = hottest * np.geomspace(1, COOLING, len(pairs))
        # A swap that costs more by c is taken with probability exp(-c / temperature).
        with np.errstate(over="ignore"):
            limits = temperatures * rng.exponential(size=len(pairs))
        for pair, limit in zip(pairs, limits, strict=True):
            walk.step(pair, limit)
    except SearchStopped:
        stop_reason = StopReason.STOPPED
    best = Incumbent(questions, start, cost)
    best.meet(walk.best, quietly=True)
    return Outcome(best.permutation, best.cost, stop_reason)


class _Walk:
    """A walk over permutations by swaps, and the best place that it has been to."""

    def __init__(self, questions: Questions, start: IntArray, cost: float) -> None:
        self._questions = questions
        self._current, self._cost = start, cost
        self.best, self._best_cost = start, cost

    def typical_change(self, pairs: IntArray) -> float:
        """Return the median size of the finite changes by swaps of the start; 0 if none is."""
        candidates = exchanged(self._current, pairs)
        changes = self._questions.nearby_changes(self._current, self._cost, [candidates]).mean
        sizes = np.sort(np.abs(changes[np.isfinite(changes)]))
        return float(sizes[len(sizes) // 2]) if len(sizes) else 0.0

    def step(self, pair: IntArray, limit: float) -> None:
        """Swap if that costs at most `limit` more."""
        candidate = exchanged(self._current, pair[None])
        changes = self._questions.nearby_changes(self._current, self._cost, [candidate])
        if changes.mean[0] <= limit and not changes.exact[0]:  # so far: it may be worse in the end
            changes = self._questions.changes(self._current, candidate, give_up_at=np.inf)
        (change,) = changes.mean
        if not -np.inf < change <= limit:
            return
        self._current, self._cost = candidate[0], self._cost + float(change)
        if self._cost < self._best_cost:
            self.best = self._current
            self._best_cost = self._questions.best_cost = self._cost


def _random_pairs(rng: np.random.Generator, size: int, num_pairs: int) -> IntArray:
    """Return pairs of different positions, shape (num_pairs, 2)."""
    first = rng.integers(size, size=num_pairs)
    second = (first + rng.integers(1, size, size=num_pairs)) % size
    return np.stack([first, second], axis=1)
