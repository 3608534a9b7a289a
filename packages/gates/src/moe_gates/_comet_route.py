"""COMET's hard route, without the scores of the nodes that it does not visit."""

import math
from types import ModuleType
from typing import NamedTuple

from moe_gates._array import Array, ArrayT, add_slots, count_up, take_rows, whole_part, widen
from moe_gates._checks import (
    check_axes,
    check_bool,
    check_floating,
    check_num_experts,
    check_same_dtype,
    check_shape,
    resolve,
)
from moe_gates._sparse_weights import SparseWeights
from moe_gates._tree import depth


class _Nodes(NamedTuple):
    """Linear maps of the nodes of all trees, one after the other: (K N, D) and (K N,)."""

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
    merge: bool = True,
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
    merge : bool, default True
        Give the weights of trees that lead to one expert to the first of them. Otherwise
        each tree keeps its own, as in `slot_weights` of the dense gate: needed where the
        leaves of each tree stand for experts in an order of its own.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    SparseWeights
        One pair a tree, in the order of the trees. Weights are >= 0, and those of a row
        sum to 1. If trees lead to one expert and `merge`, the first of them has the whole
        weight and the others weigh 0. The weights are those of the dense hard gate: equal wherever
        the scores are, which may differ in rounding, as products of matrices do.
        Same dtype and device as `rows`. Gradients reach the rows and the leaves, as with
        the dense hard gate.

    Raises
    ------
    TypeError
        If dtypes are not real floating or differ, or `merge` is not a bool.
    ValueError
        If shapes do not match, or there are fewer than 2 experts.

    Notes
    -----
    Memory is that of ``rows * num_slots * dim`` numbers, whatever the number of experts.
    A row's answer does not depend on the other rows. Its speed against the dense gate is
    measured by ``bench/gates.py``; with few experts, the dense gate is as fast.

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
    arrays = {"rows": rows, "split_weights": split_weights, "leaf_weights": leaf_weights}
    biases = {"split_bias": split_bias, "leaf_bias": leaf_bias}
    arrays |= {name: array for name, array in biases.items() if array is not None}
    xp = resolve(xp, **arrays)
    _check(arrays, xp)
    check_bool("merge", merge)
    num_slots, num_experts, dim = leaf_weights.shape
    shape = (*rows.shape[:-1], num_slots)
    # A walker a row and tree, in one axis: each level is then a few calls on flat arrays.
    walkers = _for_each_tree(widen(rows, xp)[..., None, :], (*shape, dim), (dim,), xp)
    tree = _for_each_tree(count_up(num_slots, rows, xp), shape, (), xp)
    splits, leaves = _nodes(split_weights, split_bias, xp), _nodes(leaf_weights, leaf_bias, xp)
    expert = _walk(walkers, splits, tree * (num_experts - 1), num_experts, xp)
    place = expert + tree * num_experts
    scores = _dots(walkers, leaves.weights, place, xp)
    if leaves.bias is not None:
        scores = scores + _take(leaves.bias, place, walkers, xp)
    experts = xp.reshape(expert, shape)
    weights = _softmax(xp.reshape(scores, shape), xp)
    if merge:
        weights = _merge(experts, weights, xp)
    return SparseWeights(experts, xp.astype(weights, rows.dtype, copy=False))


def _for_each_tree(
    array: Array, shape: tuple[int, ...], last: tuple[int, ...], xp: ModuleType
) -> Array:
    """Repeat an array to `shape`, and make one axis of all but the `last` ones."""
    walkers = math.prod(shape[: len(shape) - len(last)])
    return xp.reshape(xp.broadcast_to(array, shape), (walkers, *last))


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


def _nodes(weights: Array, bias: Array | None, xp: ModuleType) -> _Nodes:
    num_slots, num_nodes, dim = weights.shape
    if bias is not None:
        bias = xp.reshape(bias, (num_slots * num_nodes,))
    return _Nodes(xp.reshape(weights, (num_slots * num_nodes, dim)), bias)


def _walk(walkers: Array, splits: _Nodes, root: Array, num_experts: int, xp: ModuleType) -> Array:
    """Return the expert to which each walker comes."""
    num_levels = depth(num_experts)
    # A node is held as its heap number plus the place of the tree's root among all splits.
    # From q to 2 q + 1, the left child, or to 2 q + 2.
    left, right = 1 - root, 2 - root
    # A rounded sum has the sign of the exact one, so a comparison does for score + bias >= 0.
    thresholds = None if splits.bias is None else -splits.bias

    def goes_left(place: Array) -> Array:
        dots = _dots(walkers, splits.weights, place, xp)
        return dots >= (0 if thresholds is None else _take(thresholds, place, walkers, xp))

    node = root
    for level in range(num_levels):
        is_last = level + 1 == num_levels
        if is_last and num_experts != 2**num_levels:
            # Only some nodes are splits: the other rows are at a leaf, and stay.
            is_split = node < root + (num_experts - 1)
            to_left = goes_left(xp.where(is_split, node, root))
            node = xp.where(is_split, node + node + xp.where(to_left, left, right), node)
        else:
            node = node + node + xp.where(goes_left(node), left, right)
    # The leftmost expert is the first node of the last level; see `leaf_order`. Leaves of
    # the level above come last.
    expert = node - (root + (2**num_levels - 1))
    return expert if num_experts == 2**num_levels else expert % num_experts


def _dots(walkers: Array, weights: Array, place: Array, xp: ModuleType) -> Array:
    """Multiply each walker with one node, given its place among the nodes of all trees."""
    # Not a product of matrices: one of a row each takes up to twice as long in PyTorch,
    # and its rounding can depend on the other rows.
    return xp.sum(walkers * _take(weights, place, walkers, xp), axis=-1)


def _take(nodes: Array, place: Array, walkers: Array, xp: ModuleType) -> Array:
    """Return what some nodes have, in the dtype of the walkers."""
    taken = take_rows(nodes, place, xp)
    # A call per level that does nothing is not made.
    return taken if taken.dtype == walkers.dtype else xp.astype(taken, walkers.dtype)


def _softmax(scores: Array, xp: ModuleType) -> Array:
    """Softmax with the arithmetic of the dense gate, so that the results are equal."""
    masses = xp.exp(scores - whole_part(xp.max(scores, axis=-1, keepdims=True), xp))
    return masses / add_slots(masses, -1)[..., None]


def _merge(experts: Array, weights: Array, xp: ModuleType) -> Array:
    """Move the weights of an expert to the first pair that names it."""
    num_slots = experts.shape[-1]
    if num_slots == 1:
        return weights
    same = experts[..., :, None] == experts[..., None, :]
    total = add_slots(xp.where(same, weights[..., None, :], 0.0), -1)
    first = xp.argmax(xp.astype(same, experts.dtype), axis=-1)
    return xp.where(first == count_up(num_slots, experts, xp), total, 0.0)
