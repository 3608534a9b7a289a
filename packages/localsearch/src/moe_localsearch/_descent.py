"""Follow proposed permutations for as long as the exact cost drops."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from moe_localsearch._checks import IntArray
from moe_localsearch._questions import Questions
from moe_localsearch._result import SearchResult, StopReason, is_converged


class Proposal(NamedTuple):
    """Permutations worth an exact evaluation, shape (B, n), and whether a cost was unusable."""

    candidates: IntArray
    saw_trouble: bool


Propose = Callable[[IntArray, float], Proposal]


def improves(cost: float, current: float) -> bool:
    """Whether `cost` may replace `current`; False if either is NaN, or `cost` is -inf."""
    return -np.inf < cost < current


def descend(
    questions: Questions, start: IntArray, propose: Propose, *, max_rounds: int, method: str
) -> SearchResult:
    """Move to the best of the proposed permutations until none has a lower exact cost."""
    current = start
    cost_before = cost = questions.cost(start)
    if np.isnan(cost):
        stop_reason, max_rounds = StopReason.NON_FINITE_COST, 0
    else:
        stop_reason = StopReason.MAX_ROUNDS
    for _ in range(max_rounds):
        candidates, saw_trouble = propose(current, cost)
        costs = questions.costs(candidates) if len(candidates) else np.empty(0)
        better = [row for row, new in enumerate(costs) if improves(new, cost)]
        if not better:
            saw_trouble |= bool(np.isnan(costs).any())
            stop_reason = StopReason.NON_FINITE_COST if saw_trouble else StopReason.LOCAL_OPTIMUM
            break
        best = min(better, key=lambda row: float(costs[row]))
        current, cost = candidates[best], float(costs[best])
    return SearchResult(
        permutation=current,
        cost_before=cost_before,
        cost_after=cost,
        num_evaluations=questions.num_evaluations,
        converged=is_converged(stop_reason),
        method=method,
        stop_reason=stop_reason,
    )
