"""Weights as pairs: the experts that a row uses, and how much."""

from types import ModuleType
from typing import Generic, NamedTuple

from moe_gates._array import Array, ArrayT, count_up
from moe_gates._checks import (
    check_axes,
    check_floating,
    check_integral,
    check_num_experts,
    check_shape,
    resolve,
)


class SparseWeights(NamedTuple, Generic[ArrayT]):
    """The pairs of each row: the experts that can have a weight, and the weights.

    No expert has two non-zero weights in a row. An expert may be named twice, then all
    but one of the pairs weigh 0: so add the pairs of a row up, as a scatter-add does, and
    nothing is counted twice; do not overwrite.

    Attributes
    ----------
    experts : array, shape (*batch, num_pairs), the default integer dtype
        Expert of each pair, in ``[0, num_experts)``, also where the weight is 0.
        The default integer dtype is int64, but int32 in JAX without 64 bits.
    weights : array, shape (*batch, num_pairs)
        Dimensionless weight of each pair; 0 means: compute nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_gates import to_sparse
    >>> pairs = to_sparse(np.asarray([[0.0, 0.75, 0.0, 0.25]]), max_nonzero=2).sparse
    >>> pairs.experts.tolist(), pairs.weights.tolist()
    ([[1, 3]], [[0.75, 0.25]])
    """

    experts: ArrayT
    weights: ArrayT


def to_dense(
    sparse: SparseWeights[ArrayT], /, *, num_experts: int, xp: ModuleType | None = None
) -> ArrayT:
    """Weights of all experts, from those of the pairs.

    Parameters
    ----------
    sparse : SparseWeights, or any pair of arrays (experts, weights)
        Integer and real floating, both of shape (*batch, num_pairs). Experts in
        ``[0, num_experts)``; any other is left out. Pairs of one expert add up.
    num_experts : int
        Experts there are, at least 2.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights; 0 for an expert without a pair. Same dtype and device as
        the weights of the pairs, and the same numbers where no expert has two.

    Raises
    ------
    TypeError
        If `experts` is not integer, `weights` not real floating, or `num_experts` no integer.
    ValueError
        If shapes differ, or `num_experts` is below 2.

    Examples
    --------
    >>> import numpy as np
    >>> pairs = SparseWeights(np.asarray([[3, 1]]), np.asarray([[0.25, 0.75]]))
    >>> to_dense(pairs, num_experts=4).tolist()
    [[0.0, 0.75, 0.0, 0.25]]
    """
    experts, weights = sparse
    xp = resolve(xp, experts=experts, weights=weights)
    check_integral("experts", experts, xp)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_pairs",))
    check_shape("experts", experts, tuple(weights.shape), "that of `weights`")
    check_num_experts(num_experts)
    dense: ArrayT = _add_up(experts, weights, count_up(num_experts, experts, xp), xp)
    return dense


def _add_up(experts: Array, weights: Array, column: Array, xp: ModuleType) -> Array:
    """Add the weights of each expert, one pair of all rows after the other."""
    # Not all pairs at once: memory for rows times experts, whatever the number of pairs.
    parts = [
        xp.where(experts[..., pair : pair + 1] == column, weights[..., pair : pair + 1], 0.0)
        for pair in range(weights.shape[-1])
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
