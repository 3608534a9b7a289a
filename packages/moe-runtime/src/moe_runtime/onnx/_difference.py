"""How far answers are from what was wanted. Needs NumPy only."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# No row, one row, a row for a few experts only, and enough for every expert to have many.
BATCH_SIZES = (0, 1, 2, 7, 33, 700)
# What an export's info says of the batches that its model takes: 0, or 1 rows at least.
SMALLEST_BATCH = "smallest_batch"


def stored_batch_sizes(info: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the sizes for an export that is there: no empty batch where its model refuses one."""
    return BATCH_SIZES[1:] if info.get(SMALLEST_BATCH) == 1 else BATCH_SIZES


class Difference:
    """Differences of one output, over all that is compared."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.squares = [0.0, 0.0]  # of differences, of answers

    def add(self, answer: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Compare one batch; another shape is infinitely far."""
        if answer.shape != wanted.shape:
            self.largest = self.squares[0] = math.inf
            return
        apart, wide = distance(answer, wanted), np.abs(wanted.astype(np.float64))
        # NumPy's, which keeps a NaN.
        self.largest = float(np.maximum(self.largest, (apart / np.maximum(1, wide)).max(initial=0)))
        self.squares[0] += float(np.square(apart).sum())
        self.squares[1] += float(np.square(wide).sum())

    def error(self, *, is_exact: bool) -> float:
        """Give the largest, absolute up to 1 and relative above; or the relative mean square."""
        if is_exact:
            return self.largest
        # Of all rows together: those of a small batch alone may have answers near 0.
        differences, answers = self.squares
        return math.sqrt(differences / answers) if answers else math.sqrt(differences)


def distance(answer: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.float64]:
    """Absolute difference of each number; infinities are equal to themselves."""
    # In float64: booleans cannot be subtracted, and unsigned integers wrap around.
    answer, wanted = answer.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        apart: NDArray[np.float64] = np.where(answer == wanted, 0.0, np.abs(answer - wanted))
    return apart
