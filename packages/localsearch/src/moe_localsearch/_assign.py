"""Linear assignment: the one permutation problem that is solved exactly at any size."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment

from moe_localsearch._checks import IntArray, check_finite, check_real, check_square


def assign(costs: ArrayLike, /) -> IntArray:
    """Permutation with the lowest sum of ``costs[i, permutation[i]]``.

    Parameters
    ----------
    costs : array, shape (n, n), real
        Cost of position ``i`` (row) using ``j`` (column), in any unit.

    Returns
    -------
    array, shape (n,), int64
        A global optimum. Among several the choice is deterministic.

    Raises
    ------
    TypeError
        If `costs` does not hold real numbers.
    ValueError
        If `costs` is not square, is empty, or holds NaN or an infinity.

    References
    ----------
    Crouse, IEEE Trans. Aerospace and Electronic Systems 52(4), 2016: the algorithm, O(n^3),
    in `scipy.optimize.linear_sum_assignment`.

    Examples
    --------
    >>> assign([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
    array([1, 0, 2])
    """
    array = check_real("costs", costs, ["n", "n"])
    check_square("costs", array)
    check_finite("costs", array)
    _, permutation = linear_sum_assignment(array)
    return permutation.astype(np.int64)
