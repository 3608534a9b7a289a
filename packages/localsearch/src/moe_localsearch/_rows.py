"""The loss of mixed outputs, row by row, and arrays split by rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moe_localsearch._answers import checked
from moe_localsearch._checks import FloatArray, IntArray, RealArray, as_array

RowLoss = Callable[[FloatArray, IntArray], Any]
"""``row_loss(mixed (R, O) float64, rows (R,) int64) -> (R,)``: the loss of row ``rows[r]``
if its mixed output is ``mixed[r]``. A row may be asked about several times in one call."""


RowGradient = Callable[[FloatArray, IntArray], Any]
"""``row_gradient(mixed (R, O) float64, rows (R,) int64) -> (R, O)``: the gradient of the loss of
each row with respect to its mixed output."""


def row_losses(row_loss: RowLoss, mixed: FloatArray, rows: IntArray) -> FloatArray:
    """Return the losses, shape (R,), as float64."""
    return checked("row_loss(mixed, rows)", row_loss(mixed, rows), [("R", len(rows))])


def row_gradients(row_gradient: RowGradient, mixed: FloatArray, rows: IntArray) -> FloatArray:
    """Return the gradients, shape (R, O), as float64."""
    axes = [("R", len(rows)), ("O", mixed.shape[1])]
    return checked("row_gradient(mixed, rows)", row_gradient(mixed, rows), axes)


def on_selected_rows(of_rows: RowLoss, selected: IntArray) -> RowLoss:
    """Return a loss or gradient restricted to `selected`, told of rows by their old index."""

    def restricted(mixed: FloatArray, rows: IntArray) -> ArrayLike:
        answer: ArrayLike = of_rows(mixed, selected[rows])
        return answer

    return restricted


def check_rows(name: str, rows: ArrayLike, *, num_rows: int) -> IntArray:
    """Return distinct row indices, at least one, from a mask of shape (T,) or from integers."""
    array: RealArray = as_array(name, rows)
    if array.dtype == bool and array.shape == (num_rows,):
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        msg = (
            f"`{name}` must be a boolean mask of shape (T={num_rows},) or a list of integers, "
            f"got shape {array.shape} and dtype {array.dtype}."
        )
        raise ValueError(msg)
    if not array.size:
        msg = f"`{name}` must select at least one of T={num_rows} rows, got none."
        raise ValueError(msg)
    outside = array[(array < 0) | (array >= num_rows)]
    if len(outside):
        msg = f"`{name}` must be in [0, T={num_rows}), got {outside[0]}."
        raise ValueError(msg)
    values, counts = np.unique(array, return_counts=True)
    if np.any(counts > 1):
        msg = f"`{name}` must be distinct, got {values[counts > 1][0]} more than once."
        raise ValueError(msg)
    return array.astype(np.int64)


def split_rows(
    name: str, confirm_rows: ArrayLike | None, *, num_rows: int
) -> tuple[IntArray, IntArray | None]:
    """Return the rows to search, and those to confirm on, at least one of each if any."""
    every = np.arange(num_rows)
    if confirm_rows is None:
        return every, None
    confirm = check_rows(name, confirm_rows, num_rows=num_rows)
    if len(confirm) == num_rows:
        msg = f"`{name}` must leave rows to search, got all T={num_rows}."
        raise ValueError(msg)
    return np.delete(every, confirm), confirm
