"""Ask an objective: check the shape of each answer, count the costs that it held."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import FloatArray, IntArray, check_count, check_real, check_shape
from moe_localsearch._objective import Objective, SupportsReplacementCosts, SupportsSwapCosts

SWAPS_PER_CALL = 1024
"""Permutations in one call when swaps are evaluated in full: 8 KiB for each position."""


class Questions:
    """The questions that a search asks of one objective, and how many costs it was told."""

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, Objective):
            msg = f"`objective` must be callable and have a `size`, got {type(objective).__name__}."
            raise TypeError(msg)
        self.objective = objective
        self.size = check_count("objective.size", objective.size, minimum=1)
        self.num_evaluations = 0

    def costs(self, permutations: IntArray) -> FloatArray:
        """Return the cost of each row of `permutations`."""
        self.num_evaluations += len(permutations)
        answer = self.objective(permutations)
        return checked("objective(permutations)", answer, [("B", len(permutations))])

    def cost(self, permutation: IntArray) -> float:
        """Return the cost of one permutation."""
        return float(self.costs(permutation[None])[0])

    def replacement_costs(self, permutation: IntArray) -> FloatArray:
        """Return the cost of each single replacement, shape (n, n)."""
        if not isinstance(self.objective, SupportsReplacementCosts):
            msg = (
                "`objective` must offer `replacement_costs` for this method, "
                f"got {type(self.objective).__name__}; `descend_by_swaps` needs none."
            )
            raise TypeError(msg)
        n = self.size
        self.num_evaluations += n * (n - 1)
        answer = self.objective.replacement_costs(permutation)
        return checked("objective.replacement_costs(...)", answer, [("n", n), ("n", n)])

    def swap_costs(self, permutation: IntArray) -> FloatArray:
        """Return the cost of each swap, in the order of ``np.triu_indices(n, 1)``."""
        n = self.size
        first, second = np.triu_indices(n, 1)
        if not isinstance(self.objective, SupportsSwapCosts):
            return self._swap_costs_in_full(permutation, first, second)
        self.num_evaluations += len(first)
        answer = self.objective.swap_costs(permutation)
        costs = checked("objective.swap_costs(...)", answer, [("n", n), ("n", n)])
        return costs[first, second]

    def _swap_costs_in_full(
        self, permutation: IntArray, first: IntArray, second: IntArray
    ) -> FloatArray:
        costs = np.empty(len(first))
        for begin in range(0, len(first), SWAPS_PER_CALL):
            i, j = first[begin : begin + SWAPS_PER_CALL], second[begin : begin + SWAPS_PER_CALL]
            swapped = np.tile(permutation, (len(i), 1))
            each = np.arange(len(i))
            swapped[each, i], swapped[each, j] = permutation[j], permutation[i]
            costs[begin : begin + SWAPS_PER_CALL] = self.costs(swapped)
        return costs


def checked(name: str, answer: ArrayLike, axes: Sequence[tuple[str, int]]) -> FloatArray:
    """Return `answer` as float64; its shape is the objective's contract, its values are not."""
    array = check_real(name, answer, [axis for axis, _ in axes])
    check_shape(name, array, axes)
    return array.astype(np.float64)
