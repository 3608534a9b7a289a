"""The penalty that pulls a relaxed permutation towards a permutation."""

from types import ModuleType

from moe_localsearch._namespace import ArrayT, check_matrices, resolve

EPSILON = 1e-6
"""Inside the logarithm, as in the paper: finite at 0, and at most 1e-6 off a permutation."""


def permutation_penalty(matrix: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Entropy of the columns plus entropy of the normalised rows, about 0 at a permutation.

    Parameters
    ----------
    matrix : array, shape (*batch, n, n), real floating
        Dimensionless entries >= 0, columns that sum to 1: `SinkhornResult.matrix`.
    xp : array namespace, optional
        Inferred from `matrix` by default.

    Returns
    -------
    array, shape (*batch,)
        In nats: sum of ``-P log(P + 1e-6)`` over all entries, plus the same of P with rows
        divided by their sums; between about 0 and 2 n log n. The paper multiplies it by 1e-4.
        A row of zeros counts 0. Same dtype and device as `matrix`; differentiable.

    Raises
    ------
    TypeError
        If `matrix` is not real floating.
    ValueError
        If it is not square.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement.

    Examples
    --------
    >>> import numpy as np
    >>> permutation_penalty(np.full((2, 2), 0.5)).round(3)
    np.float64(2.773)
    """
    xp = resolve(xp, matrix=matrix)
    check_matrices("matrix", matrix, xp)
    row_sums = xp.sum(matrix, axis=-1, keepdims=True)
    divisors = xp.where(row_sums > 0, row_sums, xp.ones_like(row_sums))
    total: ArrayT = _entropy(matrix, xp) + _entropy(matrix / divisors, xp)
    return total


def _entropy(matrix: ArrayT, xp: ModuleType) -> ArrayT:
    """Return the entropy over the last two axes."""
    total: ArrayT = -xp.sum(matrix * xp.log(matrix + EPSILON), axis=(-2, -1))
    return total
