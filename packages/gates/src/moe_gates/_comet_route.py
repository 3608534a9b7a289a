"""COMET's hard route, without the scores of the nodes that it does not visit."""

from types import ModuleType
from typing import NamedTuple

from moe_gates._array import Array, ArrayT, add_slots, count_up, whole_part, widen
from moe_gates._checks import (
    check_axes,
    check_floating,
    check_num_experts,
    check_same_dtype,
    check_shape,
    resolve,
)
from moe_gates._sparse_weights import SparseWeights
from moe_gates._tree import depth


class _Nodes(NamedTuple):
    """Weights and biases of nodes of all trees: shapes (K, N, D) and (K, N)."""

    weights: Array
    bias: Array | None


def comet_route(
    rows: ArrayT,
    split_weights: ArrayT,
    leaf_weights: ArrayT,
    /,
    *,
    split_bias: ArrayT | None = None,
    leaf_bias: ArrayT | None = None,
    xp: ModuleType | None = None,
) -> SparseWeights[ArrayT]:
    """Hard COMET from the rows themselves: only the nodes on a row's paths are scored.

    ``comet_gate(rows @ split_weights, rows @ leaf_weights, hard=True)`` needs
    ``K (2E - 1)`` dot products a row, of which ``K (ceil(log2 E) + 1)`` decide. Only
    these are computed.

    Parameters
    ----------
    rows : array, shape (*batch, dim), real floating
        Input of the router.
    split_weights : array, shape (num_slots, num_experts - 1, dim), same dtype
        Linear map of each split, in heap order. A score >= 0 goes left. Neither gamma
        nor a scale changes that.
    leaf_weights : array, shape (num_slots, num_experts, dim), same dtype
        Linear map of each leaf, in the order of the experts, left to right.
    split_bias : array, shape (num_slots, num_experts - 1), same dtype, optional
        Added to the scores of the splits.
    leaf_bias : array, shape (num_slots, num_experts), same dtype, optional
        Added to the scores of the leaves, which are in nats. Safe up to 1e4 in magnitude.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    SparseWeights
        One pair a tree, in the order of the trees. Weights are >= 0, and those of a row
        sum to 1. If trees lead to one expert, the first of them has the whole weight and
        the others weigh 0. The weights are those of the dense hard gate: equal wherever
        the scores are, which may differ in rounding, as products of matrices do.
        Same dtype and device as `rows`. Gradients reach the rows and the leaves, as with
        the dense hard gate.

    Raises
    ------
    TypeError
        If dtypes are not real floating or differ.
    ValueError
        If shapes do not match, or there are fewer than 2 experts.

    Notes
    -----
    Memory is that of ``rows * num_slots * dim`` numbers, whatever the number of experts.
    A row's answer does not depend on the other rows, to the bit. Measured speed against
    the dense gate: ``bench/results``.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824.

    Examples
    --------
    >>> import numpy as np
    >>> splits = np.asarray([[[1.0], [-1.0], [2.0]]])  # one tree, four experts, one feature
    >>> route = comet_route(np.asarray([[1.0], [-1.0]]), splits, np.zeros((1, 4, 1)))
    >>> route.experts.tolist(), route.weights.tolist()
    ([[1], [3]], [[1.0], [1.0]])
    """
    names = ("rows", "split_weights", "leaf_weights", "split_bias", "leaf_bias")
    values = (rows, split_weights, leaf_weights, split_bias, leaf_bias)
    arrays = {name: array for name, array in zip(names, values, strict=True) if array is not None}
    xp = resolve(xp, **arrays)
    _check(arrays, xp)
    wide = widen(rows, xp)
    experts = _walk(wide, _Nodes(split_weights, split_bias), xp)
    scores = _scores(wide, _Nodes(leaf_weights, leaf_bias), experts, xp)
    weights = _merge(experts, _softmax(scores, xp), xp)
    return SparseWeights(experts, xp.astype(weights, rows.dtype, copy=False))


def _check(arrays: dict[str, Array], xp: ModuleType) -> None:
    rows, leaf_weights = arrays["rows"], arrays["leaf_weights"]
    for name, array in arrays.items():
        check_floating(name, array, xp)
        check_same_dtype(name, array, "rows", rows)
    check_axes("rows", rows, ("dim",))
    check_axes("leaf_weights", leaf_weights, ("num_slots", "num_experts", "dim"))
    num_slots, num_experts = leaf_weights.shape[:2]
    check_num_experts(num_experts)
    leaves, splits = (num_slots, num_experts), (num_slots, num_experts - 1)
    dim = rows.shape[-1]
    allowed = {
        "leaf_weights": ((*leaves, dim), "its last axis that of `rows`"),
        "split_weights": ((*splits, dim), "one split less than `leaf_weights` has experts"),
        "split_bias": (splits, "that of the splits"),
        "leaf_bias": (leaves, "that of the leaves"),
    }
    for name, (shape, because) in allowed.items():
        if name in arrays:
            check_shape(name, arrays[name], shape, because)


def _walk(rows: Array, splits: _Nodes, xp: ModuleType) -> Array:
    """Return the expert to which each tree leads each row, shape (*batch, num_slots)."""
    num_slots, num_splits, _ = splits.weights.shape
    num_levels = depth(num_splits + 1)
    root = count_up(num_slots, rows, xp) * num_splits
    # A node is held as its heap number plus the root's place among the splits of all trees.
    node = root
    for level in range(num_levels):
        if level + 1 < num_levels or num_splits + 1 == 2**num_levels:
            node = _descend(rows, splits, node, root, xp)
        else:
            # The last level of a number that is no power of 2: some rows are at a leaf.
            is_split = node < root + num_splits
            below = _descend(rows, splits, xp.where(is_split, node, root), root, xp)
            node = xp.where(is_split, below, node)
    # The leftmost expert is the first node of the last level; see `leaf_order`.
    return (node - root - (2**num_levels - 1)) % (num_splits + 1)


def _descend(rows: Array, splits: _Nodes, node: Array, root: Array, xp: ModuleType) -> Array:
    """Go to the left child, 2 q + 1, where the score is >= 0, else to the right one."""
    scores = _dots(rows, splits, node, xp)
    return 2 * node + xp.where(scores >= 0, 1 - root, 2 - root)


def _scores(rows: Array, leaves: _Nodes, experts: Array, xp: ModuleType) -> Array:
    """Score the leaf that each tree leads to."""
    num_slots, num_experts, _ = leaves.weights.shape
    return _dots(rows, leaves, experts + count_up(num_slots, rows, xp) * num_experts, xp)


def _dots(rows: Array, nodes: _Nodes, place: Array, xp: ModuleType) -> Array:
    """Score one node a slot, given its place among the nodes of all trees."""
    num_slots, num_nodes, dim = nodes.weights.shape
    places = xp.reshape(place, (-1,))
    table = xp.reshape(nodes.weights, (num_slots * num_nodes, dim))
    chosen = xp.reshape(xp.take(table, places, axis=0), (*place.shape, dim))
    # Not a product of matrices: one of a row each takes up to twice as long in PyTorch,
    # and its rounding can depend on the other rows.
    scores = xp.sum(rows[..., None, :] * widen(chosen, xp), axis=-1)
    if nodes.bias is None:
        return scores
    table = xp.reshape(nodes.bias, (num_slots * num_nodes,))
    return scores + widen(xp.reshape(xp.take(table, places, axis=0), place.shape), xp)


def _softmax(scores: Array, xp: ModuleType) -> Array:
    """Softmax with the arithmetic of the dense gate, so that the results are equal."""
    masses = xp.exp(scores - whole_part(xp.max(scores, axis=-1, keepdims=True), xp))
    return masses / add_slots(masses, -1, xp)[..., None]


def _merge(experts: Array, weights: Array, xp: ModuleType) -> Array:
    """Move the weights of an expert to the first pair that names it."""
    num_slots = experts.shape[-1]
    if num_slots == 1:
        return weights
    same = experts[..., :, None] == experts[..., None, :]
    slot = count_up(num_slots, experts, xp)
    repeats = xp.any(same & (slot < slot[:, None]), axis=-1)
    total = add_slots(xp.where(same, weights[..., None, :], 0.0), -1, xp)
    return xp.where(repeats, 0.0, total)
