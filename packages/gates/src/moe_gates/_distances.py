"""How far weights are from the simplex, and from other weights."""

import math
from types import ModuleType
from typing import Generic, NamedTuple

from moe_gates._array import Array, ArrayT, device_of, widen
from moe_gates._checks import check_axes, check_floating, check_shape, resolve


class SimplexError(NamedTuple, Generic[ArrayT]):
    """The largest distances from the simplex over all rows: 0 and 0 means on it.

    Attributes
    ----------
    sum_error : array, shape ()
        Dimensionless: largest ``|sum of a row - 1|``.
    negative_part : array, shape ()
        Dimensionless: magnitude of the most negative weight.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_gates import simplex_error
    >>> simplex_error(np.asarray([[0.5, 0.5], [1.5, -0.25]])).sum_error.tolist()
    0.25
    """

    sum_error: ArrayT
    negative_part: ArrayT


def simplex_error(weights: ArrayT, /, *, xp: ModuleType | None = None) -> SimplexError[ArrayT]:
    """Tell how far rows are from weights that are >= 0 and sum to 1.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    SimplexError
        Both distances, 0 without rows; NaN if a weight is. Same dtype and device as
        `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has no expert axis.

    Examples
    --------
    >>> import numpy as np
    >>> error = simplex_error(np.asarray([[0.5, 0.5], [1.5, -0.25]]))
    >>> float(error.sum_error), float(error.negative_part)
    (0.25, 0.25)
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    wide = widen(weights, xp)
    largest = (_largest(xp.abs(xp.sum(wide, axis=-1) - 1), xp), _largest(-wide, xp))
    return SimplexError(*(xp.astype(each, weights.dtype, copy=False) for each in largest))


def total_variation(
    weights: ArrayT, other_weights: ArrayT, /, *, xp: ModuleType | None = None
) -> ArrayT:
    """Half the sum of the differences of each row: the weight that has to move.

    Between the soft weights of a gate and its hard ones, it is the gap that hardening leaves.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    other_weights : array, shape of `weights`, same dtype
        Weights of another one.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape (*batch,)
        Dimensionless; in [0, 1] if both rows sum to 1: 0 if they are equal, 1 if they share
        no expert. Same dtype and device as `weights`.

    Raises
    ------
    TypeError
        If dtypes are not real floating.
    ValueError
        If `weights` has no expert axis or shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> total_variation(np.asarray([0.75, 0.25, 0.0]), np.asarray([1.0, 0.0, 0.0])).tolist()
    0.25
    """
    xp = resolve(xp, weights=weights, other_weights=other_weights)
    check_floating("weights", weights, xp)
    check_floating("other_weights", other_weights, xp)
    check_axes("weights", weights, ("num_experts",))
    check_shape("other_weights", other_weights, tuple(weights.shape), "that of `weights`")
    moved = xp.sum(xp.abs(widen(weights, xp) - widen(other_weights, xp)), axis=-1) / 2
    distance: ArrayT = xp.astype(moved, weights.dtype, copy=False)
    return distance


def _largest(values: Array, xp: ModuleType) -> Array:
    """Return the largest value above 0, or 0, also where there are no values."""
    zero = xp.zeros((1,), dtype=values.dtype, device=device_of(values))
    # torch.onnx (2.13) cannot export a largest value without an axis.
    return xp.max(xp.concat([zero, xp.reshape(values, (math.prod(values.shape),))]), axis=0)
