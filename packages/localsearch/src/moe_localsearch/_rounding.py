"""Between relaxed permutation matrices and permutations."""

from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array, is_torch_array, to_device
from numpy.typing import ArrayLike

from moe_localsearch._assign import assign
from moe_localsearch._checks import (
    IntArray,
    RealArray,
    check_finite,
    check_permutations,
    check_real,
    check_square,
)
from moe_localsearch._namespace import ArrayT


def round_to_permutation(matrix: ArrayT, /) -> IntArray:
    """Permutation with the largest sum of ``matrix[i, permutation[i]]``.

    Parameters
    ----------
    matrix : array, shape (*batch, n, n), real
        Any array library, any device; usually `SinkhornResult.matrix`. Dimensionless.

    Returns
    -------
    array, shape (*batch, n), int64, NumPy
        A global optimum for each matrix, so ``permutation_matrix`` of it is the nearest
        permutation matrix in the Frobenius norm. No gradient passes.

    Raises
    ------
    TypeError
        If `matrix` does not hold real numbers.
    ValueError
        If it is not square, or holds NaN or an infinity.

    Examples
    --------
    >>> import numpy as np
    >>> round_to_permutation(np.array([[0.6, 0.4], [0.9, 0.1]]))
    array([1, 0])
    """
    values = _to_numpy(matrix)
    values = check_real("matrix", values, ["..."] * (values.ndim - 2) + ["n", "n"])
    check_square("matrix", values)
    check_finite("matrix", values)
    size = values.shape[-1]
    # Negated in float64: unsigned integers have no negative.
    costs = -values.reshape(-1, size, size).astype(np.float64)
    found = [assign(each) for each in costs]
    return np.array(found, dtype=np.int64).reshape(values.shape[:-1])


def permutation_matrix(
    permutation: ArrayLike, /, *, xp: ModuleType, dtype: object, device: object = None
) -> Any:  # noqa: ANN401  # the namespace decides the type
    """Matrix with ``P[i, permutation[i]] = 1`` and 0 elsewhere.

    Parameters
    ----------
    permutation : array, shape (*batch, n), integer
        ``permutation[i]`` is what position ``i`` uses.
    xp : array namespace
        Library of the result, such as `numpy` or `array_api_compat.torch`.
    dtype : dtype of `xp`
        Type of the entries.
    device : device of `xp`, optional
        Where the result lies; the library's default if None.

    Returns
    -------
    array of `xp`, shape (*batch, n, n)
        Rows and columns sum to 1. For weights of positions, shape (..., n), ``weights @ P`` are
        the weights of what they use.

    Raises
    ------
    TypeError
        If `permutation` does not hold integers.
    ValueError
        If its last axis is no permutation.

    Examples
    --------
    >>> import numpy as np
    >>> permutation_matrix([1, 0], xp=np, dtype=np.float64)
    array([[0., 1.],
           [1., 0.]])
    """
    checked = check_permutations("permutation", permutation)
    one_hot = checked[..., None] == np.arange(checked.shape[-1])
    return xp.asarray(one_hot.astype(np.float64), dtype=dtype, device=device)


def _to_numpy(array: ArrayT) -> RealArray:
    """Return a NumPy view or copy of the array of any library, without its gradient."""
    values: Any = array
    if is_torch_array(values):
        values = to_device(values.detach(), "cpu")
    elif is_cupy_array(values):
        values = to_device(values, "cpu")
    return np.asarray(values)
