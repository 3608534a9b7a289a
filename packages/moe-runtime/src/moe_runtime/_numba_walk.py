"""The root-to-leaf walks of hard COMET, compiled by numba.

Axes: T rows, D input features, E experts, K trees, N splits (E - 1) of a tree.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_runtime._numba_rows import compiled

Floats = NDArray[np.floating]

# Rows that take each step together: independent products hide the latency of memory, and
# the rows stay in the first-level cache.
BLOCK = 8


# The sum may be reordered, or it could not be vectorised; nothing else is assumed.
@compiled("reassoc", "contract")
def _dot(x_TD: Floats, row: int, weight_ND: Floats, node: int) -> "np.floating[Any]":
    total = x_TD.dtype.type(0)
    for feature in range(x_TD.shape[1]):
        total += x_TD[row, feature] * weight_ND[node, feature]
    return total


@compiled()
def _descend(
    start: int,
    stop: int,
    slot: int,
    num_experts: int,
    x_TD: Floats,
    split_weight: Floats,
    split_bias: Floats,
    position_TK: NDArray[np.int64],
) -> None:
    """Lead a block of rows from the root of one tree to their leaves."""
    num_splits = num_experts - 1
    root = slot * num_splits
    first_of_level = 0
    for row in range(start, stop):
        position_TK[row, slot] = 0
    while first_of_level < num_splits:
        for row in range(start, stop):
            node = position_TK[row, slot]
            if node < num_splits:
                score = _dot(x_TD, row, split_weight, root + node) + split_bias[root + node]
                position_TK[row, slot] = 2 * node + (1 if score >= 0 else 2)
        first_of_level = 2 * first_of_level + 1
    for row in range(start, stop):
        # Leaves of the last level come first; see `moe_gates.leaf_order`.
        position = position_TK[row, slot] - first_of_level
        position_TK[row, slot] = position if position >= 0 else position + num_experts


@compiled()
def _softmax(scores_K: Floats) -> None:
    largest = scores_K.max()
    total = scores_K.dtype.type(0)
    for slot in range(scores_K.shape[0]):
        scores_K[slot] = math.exp(scores_K[slot] - largest)
        total += scores_K[slot]
    for slot in range(scores_K.shape[0]):
        scores_K[slot] /= total


@compiled()
def walk(
    start: int,
    stop: int,
    x_TD: Floats,
    split_weight: Floats,  # (K N, D)
    split_bias: Floats,
    leaf_weight: Floats,  # (K E, D)
    leaf_bias: Floats,
    position_TK: NDArray[np.int64],
    weight_TK: Floats,
) -> None:
    """Write the leaf that each row reaches in each tree, and the tree's share of the row."""
    num_slots = position_TK.shape[1]
    num_experts = leaf_weight.shape[0] // num_slots
    for first in range(start, stop, BLOCK):
        end = min(first + BLOCK, stop)
        for slot in range(num_slots):
            _descend(first, end, slot, num_experts, x_TD, split_weight, split_bias, position_TK)
            for row in range(first, end):
                leaf = slot * num_experts + position_TK[row, slot]
                weight_TK[row, slot] = _dot(x_TD, row, leaf_weight, leaf) + leaf_bias[leaf]
        for row in range(first, end):
            _softmax(weight_TK[row])
