"""Relabel experts: by a permutation, or softly by a matrix.

Whether a relabelling is shared or one a slot is said by its own number of axes,
never guessed from the weights: a shared one acts on the last axis of anything,
one a slot on the last two axes, which must then be (num_slots, num_experts).
"""

import math
from types import ModuleType

from moe_gates._array import Array, ArrayT, count_up, smallest_normal, stop_gradient, widen
from moe_gates._checks import check_axes, check_floating, check_integral, check_relabelling, resolve


def permute(weights: ArrayT, permutation: Array, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Move the weight at position i to expert ``permutation[i]``.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts) or (*batch, num_slots, num_experts)
        Real floating.
    permutation : array, shape (num_experts,) or (num_slots, num_experts), integer
        With one axis, the same for every row, and every slot. With two axes, one
        for each slot: the last two axes of `weights` are then slots and experts.
        Each row must hold every expert once. Not checked, since that would stop a
        compiler; what other rows do is up to the array library.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape of `weights`
        ``new[..., permutation[i]] = old[..., i]``: the same numbers, to the bit.
        Same dtype and device as `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating or `permutation` not integer.
    ValueError
        If shapes do not match.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824: g^P = g P with P[i, permutation[i]] = 1.

    Examples
    --------
    >>> import numpy as np
    >>> permute(np.asarray([0.75, 0.25, 0.0]), np.asarray([2, 0, 1])).tolist()
    [0.25, 0.0, 0.75]
    """
    xp = resolve(xp, weights=weights, permutation=permutation)
    check_floating("weights", weights, xp)
    check_integral("permutation", permutation, xp)
    check_relabelling("permutation", permutation, weights, num_expert_axes=1)
    # A gather copies exactly; a product with a 0-1 matrix would cost E times as much
    # and round on hardware with reduced-precision products.
    axes = permutation.shape
    size = math.prod(axes)
    source = xp.reshape(_invert(permutation, xp), (size,))
    flat = xp.reshape(weights, (*weights.shape[: -len(axes)], size))
    permuted: ArrayT = xp.reshape(xp.take(flat, source, axis=-1), weights.shape)
    return permuted


def _invert(permutation: Array, xp: ModuleType) -> Array:
    """Where each expert's weight comes from, as an index into all slots together."""
    # By comparison: torch.onnx (2.13) cannot export the sort that argsort needs.
    size = math.prod(permutation.shape)
    position = xp.reshape(count_up(size, permutation, xp), permutation.shape)
    expert = count_up(permutation.shape[-1], permutation, xp)
    moved_here = permutation[..., :, None] == expert
    return xp.sum(xp.where(moved_here, position[..., :, None], 0), axis=-2)


def mix(weights: ArrayT, matrix: Array, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Share the weight at position i among experts in the proportions ``matrix[i]``.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts) or (*batch, num_slots, num_experts)
        Real floating.
    matrix : array, shape (num_experts, num_experts) or (num_slots, num_experts, num_experts)
        Real floating, dimensionless. With two axes, the same for every row, and
        every slot. With three axes, one for each slot: the last two axes of
        `weights` are then slots and experts. Rows that sum to 1 keep the sums.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape of `weights`
        ``new[..., j] = sum_i old[..., i] matrix[i, j]``. Same dtype and device as
        `weights`.

    Raises
    ------
    TypeError
        If an array is not real floating.
    ValueError
        If shapes do not match.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824: g^P = g P with a soft P.

    Examples
    --------
    >>> import numpy as np
    >>> matrix = np.asarray([[0.5, 0.5], [0.0, 1.0]])
    >>> mix(np.asarray([0.5, 0.5]), matrix).tolist()
    [0.25, 0.75]
    """
    xp = resolve(xp, weights=weights, matrix=matrix)
    check_floating("weights", weights, xp)
    check_floating("matrix", matrix, xp)
    check_relabelling("matrix", matrix, weights, num_expert_axes=2)
    if len(matrix.shape) == 2:
        mixed = xp.matmul(widen(weights, xp), widen(matrix, xp))
    else:
        mixed = _mix_slots(widen(weights, xp), widen(matrix, xp), xp)
    narrow: ArrayT = xp.astype(mixed, weights.dtype, copy=False)
    return narrow


def _mix_slots(weights: Array, matrices: Array, xp: ModuleType) -> Array:
    """Mix each slot by its own matrix."""
    # One product a slot: broadcasting the matrices over the batch would copy them.
    num_slots = matrices.shape[0]
    mixed = [xp.matmul(weights[..., slot, :], matrices[slot, ...]) for slot in range(num_slots)]
    return xp.stack(mixed, axis=-2)


def normalize(weights: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Divide each row by its sum; a row that sums to 0 stays 0.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Entries >= 0.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless; rows sum to 1. A row whose sum is below the smallest normal
        number of the dtype, or 1.2e-38, stays as it is. Gradients are finite there.
        Same dtype and device as `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has no expert axis.

    Examples
    --------
    >>> import numpy as np
    >>> normalize(np.asarray([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    wide = widen(weights, xp)
    total = xp.sum(wide, axis=-1, keepdims=True)
    has_sum = total >= smallest_normal(wide.dtype, xp)
    # In two steps: JAX's gradient of a division squares the divisor, which may vanish.
    scaled = wide / xp.where(has_sum, stop_gradient(total, xp), 1.0)
    divisor = xp.where(has_sum, xp.sum(scaled, axis=-1, keepdims=True), 1.0)
    normalized: ArrayT = xp.astype(scaled / divisor, weights.dtype, copy=False)
    return normalized
