"""Follow proposed permutations for as long as the exact cost drops."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from moe_localsearch._checks import FloatArray, IntArray
from moe_localsearch._confirm import paired_gain
from moe_localsearch._progress import SearchStopped
from moe_localsearch._questions import Questions
from moe_localsearch._result import Outcome, StopReason


class Proposal(NamedTuple):
    """Permutations worth an exact evaluation, shape (B, n), and whether a cost was unusable."""

    candidates: IntArray
    saw_trouble: bool


Propose = Callable[[IntArray, float], Proposal]


def improves(cost: float, current: float) -> bool:
    """Whether `cost` may replace `current`; False if either is NaN, or `cost` is -inf."""
    return -np.inf < cost < current


def descend(
    questions: Questions, start: IntArray, cost: float, propose: Propose, *, max_rounds: int
) -> Outcome:
    """Move to the best of the proposed permutations until none has a lower exact cost."""
    if np.isnan(cost):
        return Outcome(start, cost, StopReason.NON_FINITE_COST)
    current = start
    for _ in range(max_rounds):
        questions.best_cost = float(np.fmin(questions.best_cost, cost))
        try:
            candidates, saw_trouble = propose(current, cost)
            costs = questions.costs(candidates) if len(candidates) else np.empty(0)
            chosen = _best_gain(questions, current, cost, candidates, costs)
        except SearchStopped:
            return Outcome(current, cost, StopReason.STOPPED)
        if chosen is None:
            saw_trouble |= bool(np.isnan(costs).any())
            trouble = StopReason.NON_FINITE_COST
            return Outcome(current, cost, trouble if saw_trouble else StopReason.LOCAL_OPTIMUM)
        current, cost = candidates[chosen], float(costs[chosen])
    return Outcome(current, cost, StopReason.MAX_ROUNDS)


def _best_gain(
    questions: Questions, current: IntArray, cost: float, candidates: IntArray, costs: FloatArray
) -> int | None:
    """Return the cheapest candidate whose gain is above the threshold, or None."""
    better = [row for row, new in enumerate(costs) if improves(new, cost)]
    for row in sorted(better, key=lambda row: float(costs[row])):
        if is_significant(questions, current, candidates[row]):
            return row
    return None


def is_significant(questions: Questions, current: IntArray, candidate: IntArray) -> bool:
    """Whether the paired gain of `candidate` is above so many of its standard errors."""
    if questions.move_standard_errors == 0:
        return True
    before, after = questions.row_costs(current), questions.row_costs(candidate)
    assert before is not None, "the constructor of Questions asks for row_costs"
    assert after is not None
    threshold = questions.move_standard_errors
    return paired_gain(before, after, num_standard_errors=threshold).accepted


class Incumbent:
    """The best permutation met, which begins as the start."""

    def __init__(self, questions: Questions, start: IntArray, cost: float) -> None:
        self.permutation, self.cost = start, cost
        self._questions = questions
        self._start = start

    def meet(self, permutation: IntArray, *, quietly: bool = False) -> float:
        """Evaluate a permutation, keep it if it is better, and return its cost."""
        ask = self._questions.cost_quietly if quietly else self._questions.cost
        cost = ask(permutation)
        if improves(cost, self.cost) and is_significant(self._questions, self._start, permutation):
            self.permutation = permutation
            self.cost = self._questions.best_cost = cost
        return cost
