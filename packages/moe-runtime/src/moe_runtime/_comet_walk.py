"""Hard COMET from the rows themselves: only the nodes on a row's paths are scored.

Axes: T rows, D input features, E experts, K trees, N splits (E - 1) of a tree.
"""

from typing import NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

import moe_gates

# Numbers that a step gathers at once, a megabyte of float32: more than the cache takes much longer.
GATHERED = 2**18
# About what a product and its addition take on one core of an x86 CPU, weights in the cache.
NANOSECONDS_A_PRODUCT = 0.06


class Nodes(NamedTuple):
    """The linear maps of the splits, in heap order, and of the leaves, left to right."""

    split_weight: Tensor  # (K N, D)
    split_bias: Tensor  # (K N,)
    leaf_weight: Tensor  # (K E, D)
    leaf_bias: Tensor  # (K E,)


class Walk(NamedTuple):
    """Where each tree leads a row, and its share of the row's weight."""

    position_TK: Tensor  # int64
    weight_TK: Tensor  # >= 0, rows sum to 1


def walk_by_gather(x_TD: Tensor, nodes: Nodes, num_slots: int) -> Walk:
    """Walk level by level, gathering the nodes of many rows: `moe_gates.comet_route`."""
    split_weight, split_bias, leaf_weight, leaf_bias = (
        torch.unflatten(part, 0, (num_slots, -1)) for part in nodes
    )
    biases = {"split_bias": split_bias, "leaf_bias": leaf_bias}
    # A compiler fuses the gather and its products, and needs no pieces.
    rows = max(1, GATHERED // (num_slots * x_TD.shape[1]))
    pieces = [x_TD] if torch.compiler.is_compiling() else torch.split(x_TD, rows)
    routes = [
        moe_gates.comet_route(x_RD, split_weight, leaf_weight, **biases, merge=False, xp=xp)
        for x_RD in pieces
    ]
    if len(routes) == 1:
        return Walk(*routes[0])
    return Walk(torch.cat([r.experts for r in routes]), torch.cat([r.weights for r in routes]))


def walk_by_numba(x_TD: Tensor, nodes: Nodes, num_slots: int) -> Walk:
    """Walk row by row with numba; float32 or float64, on the CPU, without gradients."""
    from moe_runtime import _numba_rows, _numba_walk  # noqa: PLC0415 - an extra, at use

    num_rows, dim = x_TD.shape
    depth = (nodes.leaf_bias.shape[0] // num_slots - 1).bit_length()
    position_TK = torch.empty(num_rows, num_slots, dtype=torch.int64)
    weight_TK = x_TD.new_empty(num_rows, num_slots)
    _numba_rows.over_rows(
        _numba_walk.walk,
        num_rows,
        NANOSECONDS_A_PRODUCT * num_slots * (depth + 1) * dim,
        *(each.detach().contiguous().numpy() for each in (x_TD, *nodes)),
        position_TK.numpy(),
        weight_TK.numpy(),
    )
    return Walk(position_TK, weight_TK)


def spread(walk: Walk, permutation_KE: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (T, E) of the experts, and those (T, K, E) of the trees' positions."""
    position_TK, weight_TK = walk
    num_slots, num_experts = permutation_KE.shape
    num_rows = position_TK.shape[0]
    slot_weights_TKE = _zeros(weight_TK, num_rows, num_slots, num_experts)
    slot_weights_TKE.scatter_(2, position_TK[..., None], weight_TK[..., None])
    expert_TK = permutation_KE.gather(1, position_TK.T).T
    weights_TE = _zeros(weight_TK, num_rows, num_experts)
    return weights_TE.scatter_add_(1, expert_TK, weight_TK), slot_weights_TKE


def _zeros(like: Tensor, *shape: int) -> Tensor:
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return like.new_zeros(shape)
    # NumPy has the system clear memory as it is first touched, and most of this never is:
    # four times as fast as torch's zeros with 4096 experts.
    return torch.from_numpy(np.zeros(shape, "f8" if like.dtype is torch.float64 else "f4"))
