"""Check what an objective, or a loss, answered."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._checks import FloatArray, IntArray, check_real, check_shape
from moe_localsearch._objective import SupportsRowCosts


def checked(name: str, answer: ArrayLike, axes: Sequence[tuple[str, int]]) -> FloatArray:
    """Return `answer` as float64; its shape is the objective's contract, its values are not."""
    array = check_real(name, answer, [axis for axis, _ in axes])
    check_shape(name, array, axes)
    return array.astype(np.float64)


def row_costs_of(name: str, objective: SupportsRowCosts, permutation: IntArray) -> FloatArray:
    """Return the cost of each row under `permutation`, shape (T,)."""
    answer = objective.row_costs(permutation.copy())
    return checked(f"{name}.row_costs(...)", answer, [("T", len(answer))])
