"""From weights with exact zeros to pairs, as many a row as are allowed."""

from types import ModuleType
from typing import Generic, NamedTuple

from moe_gates._array import Array, ArrayT, count_up, widen
from moe_gates._checks import check_axes, check_floating, check_integer, resolve
from moe_gates._sparse_weights import SparseWeights


class BoundedSparse(NamedTuple, Generic[ArrayT]):
    """Pairs of each row, and what did not fit among them.

    Attributes
    ----------
    sparse : SparseWeights, shape (*batch, max_nonzero)
        The largest weights of each row, in the order of the experts.
    dropped : array, shape (*batch,)
        Dimensionless sum of the weights that did not fit; exactly 0 where all did.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_gates import to_sparse
    >>> to_sparse(np.asarray([0.25, 0.5, 0.25]), max_nonzero=2).dropped.tolist()
    0.25
    """

    sparse: SparseWeights[ArrayT]
    dropped: ArrayT


def to_sparse(
    weights: ArrayT, /, *, max_nonzero: int, xp: ModuleType | None = None
) -> BoundedSparse[ArrayT]:
    """List the non-zero weights of each row, at most `max_nonzero`.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate, >= 0.
    max_nonzero : int
        Pairs a row has afterwards, in ``[1, num_experts]``. Its cost is that many passes
        over the weights, which suits a handful.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    BoundedSparse
        The `max_nonzero` largest weights of each row; a tie keeps the lower expert. The
        experts of a row differ and increase, so that these pairs can also be scattered by
        overwriting. A row with fewer non-zero weights is padded with experts of weight 0.
        What did not fit is in `dropped`, and is not an error: the weights kept are not
        renormalised. Same dtype and device as `weights`; gradients reach the weights kept.

    Raises
    ------
    TypeError
        If `weights` is not real floating or `max_nonzero` is no integer.
    ValueError
        If `weights` has no expert axis or `max_nonzero` is outside ``[1, num_experts]``.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.asarray([[0.0, 0.75, 0.0, 0.25], [0.0, 0.0, 1.0, 0.0]])
    >>> bounded = to_sparse(weights, max_nonzero=2)
    >>> bounded.sparse.experts.tolist()
    [[1, 3], [0, 2]]
    >>> bounded.sparse.weights.tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    >>> bounded.dropped.tolist()
    [0.0, 0.0]
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    num_experts = weights.shape[-1]
    check_integer("max_nonzero", max_nonzero, 1, num_experts, high_name="num_experts")
    experts, kept, rest = _take_largest(weights, max_nonzero, xp)
    # Ordered by comparing the few experts of a row: torch.onnx (2.13) cannot export a sort.
    rank = xp.sum(xp.astype(experts[..., None, :] < experts[..., :, None], xp.int32), axis=-1)
    lands_here = rank[..., None, :] == count_up(max_nonzero, rank, xp)[:, None]
    pairs = SparseWeights(
        experts=xp.sum(xp.where(lands_here, experts[..., None, :], 0), axis=-1),
        weights=xp.sum(xp.where(lands_here, kept[..., None, :], 0.0), axis=-1),
    )
    dropped = xp.astype(xp.sum(widen(rest, xp), axis=-1), weights.dtype, copy=False)
    return BoundedSparse(pairs, dropped)


def _take_largest(weights: Array, count: int, xp: ModuleType) -> tuple[Array, Array, Array]:
    """Return the experts of the largest weights, those weights, and the weights left."""
    expert = count_up(weights.shape[-1], weights, xp)
    taken = xp.zeros_like(weights, dtype=xp.bool)
    experts, kept = [], []
    for _ in range(count):
        best = xp.argmax(xp.where(taken, -1.0, weights), axis=-1, keepdims=True)
        is_best = expert == best
        experts.append(best[..., 0])
        kept.append(xp.sum(xp.where(is_best, weights, 0.0), axis=-1))
        taken = taken | is_best
    rest = xp.where(taken, 0.0, weights)
    return xp.stack(experts, axis=-1), xp.stack(kept, axis=-1), rest
