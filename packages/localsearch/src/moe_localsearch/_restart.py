"""Begin again from shuffled copies of the best permutation, and keep the best of all."""

import numpy as np

from moe_localsearch._checks import IntArray
from moe_localsearch._descent import improves, is_significant
from moe_localsearch._progress import SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, StopReason
from moe_localsearch._swaps import swap_outcome

RESTARTS = "restarts"
MIN_SHUFFLED = 4
SHARE_SHUFFLED = 0.5
"""Of a quarter, a half, and all positions, a half led to the best optima in quadratic assignment
with 8, 20 and 40 positions; with fewer than four, the descent often undoes them."""


def restart_outcome(
    questions: Questions, start: IntArray, cost: float, *, num_restarts: int, seed: int
) -> Outcome:
    """Descend by swaps from `num_restarts` perturbations of the best permutation so far."""
    rng = np.random.default_rng(seed)
    best = Outcome(start, cost, StopReason.LOCAL_OPTIMUM)
    if np.isnan(cost):
        return best._replace(stop_reason=StopReason.NON_FINITE_COST)
    if len(start) < 2:
        return best
    for _ in range(num_restarts):
        shuffled = _shuffled(rng, best.permutation)
        try:
            outcome = swap_outcome(questions, shuffled, questions.cost(shuffled))
        except SearchStopped:
            return best._replace(stop_reason=StopReason.STOPPED)
        if improves(outcome.cost, best.cost) and is_significant(
            questions, best.permutation, outcome.permutation
        ):
            best = outcome
        questions.best_cost = best.cost
        if outcome.stop_reason is StopReason.STOPPED:
            return best._replace(stop_reason=StopReason.STOPPED)
    return best


def _shuffled(rng: np.random.Generator, permutation: IntArray) -> IntArray:
    """Return a copy in which half of the positions, four at least, are shuffled."""
    size = len(permutation)
    count = min(size, max(MIN_SHUFFLED, round(SHARE_SHUFFLED * size)))
    positions = rng.choice(size, count, replace=False)
    moved = permutation.copy()
    moved[positions] = permutation[rng.permutation(positions)]
    return moved
