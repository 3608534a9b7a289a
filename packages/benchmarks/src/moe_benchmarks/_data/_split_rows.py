"""Rows into training, validation and test ones."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The paper's shares: a tenth of the rows is for the test, an eighth of the rest for
# validation, each rounded up.
TEST_PART, VALIDATION_PART = 10, 8


class Rows(NamedTuple):
    """Indices of rows, each in one split, in random order."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_rows(
    positive: NDArray[np.bool_],
    /,
    *,
    generator: np.random.Generator,
    validation_part: int = VALIDATION_PART,
) -> Rows:
    """Split rows so that each split has the same share of positive ones, up to one row.

    Parameters
    ----------
    positive : array, shape (num_rows,), bool
        What the split is stratified by.
    generator : numpy.random.Generator
        Which rows go where.
    validation_part : int
        One in so many of the rows that are left after the test ones, for validation.
    """
    rest = generator.permutation(len(positive))
    test, rest = _take(rest, positive, -(-len(rest) // TEST_PART))
    validation, train = _take(rest, positive, -(-len(rest) // validation_part))
    return Rows(train, validation, test)


def _take(
    rows: NDArray[np.int64], positive: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the first rows, as many positive ones as is their share, and return the others too."""
    if not len(rows):
        return rows, rows
    is_positive = positive[rows]
    num_positive = round(count * is_positive.mean())
    place = np.where(is_positive, np.cumsum(is_positive), np.cumsum(~is_positive))
    taken = place <= np.where(is_positive, num_positive, count - num_positive)
    return rows[taken], rows[~taken]
