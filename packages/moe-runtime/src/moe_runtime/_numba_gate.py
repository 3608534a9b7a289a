"""COMET's gate between scores and weights, forward and backward, compiled by numba.

Trees are heaps, as in `moe_gates`: splits 0..E-2, leaves E-1..2E-2, children of q are
2q + 1 (left) and 2q + 2 (right). Each step is a loop over neighbours in memory with few
arrays, which LLVM vectorises; a block of rows at a time, which stays in the cache.

Axes: T rows, S splits of a row in all its trees, L leaves of a row in all its trees,
N splits of a tree (E - 1), E leaves of a tree, M nodes of a tree (2 E - 1).
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe_runtime._numba_rows import compiled

Floats = NDArray[np.floating]
Integers = NDArray[np.signedinteger]
Number: TypeAlias = "np.floating[Any]"

LOG_2 = math.log(2)
# Splits of a block: small trees are then as long a loop as large ones.
BLOCK = 1024


@compiled()
def _decide(
    split_N: Floats,
    gamma: float,
    hard: bool,  # noqa: FBT001 - compiled functions take no keywords
    left_N: Floats,
    right_N: Floats,
) -> None:
    """Write the probabilities of going left and right, as `moe_gates.smooth_step` has them."""
    kind = split_N.dtype.type
    zero, half, one, width = kind(0), kind(0.5), kind(1), kind(gamma)
    for node in range(split_N.shape[0]):
        up = split_N[node] / width + half
        up = min(max(up, zero), one)  # NaN stays NaN
        if hard:
            up = one if split_N[node] >= zero else zero
        down = one - up
        half_cross = up * down
        cross = half_cross + half_cross
        left_N[node] = up * (up + cross)
        right_N[node] = down * (down + cross)


@compiled()
def _walk_down(left_N: Floats, right_N: Floats, reached_M: Floats) -> None:
    """Write the probability of each node."""
    reached_M[0] = 1
    for node in range(left_N.shape[0]):
        here = reached_M[node]
        reached_M[2 * node + 1] = here * left_N[node]
        reached_M[2 * node + 2] = here * right_N[node]


@compiled()
def _num_last(num_experts: int) -> int:
    """Return how many leaves the last level has; they are the first experts."""
    width = 1
    while width < num_experts:
        width *= 2
    return 2 * num_experts - width


@compiled()
def _leaves_of(node_M: Floats, leaf_E: Floats) -> None:
    """Copy what the leaves of a heap have, from left to right."""
    num_experts = leaf_E.shape[0]
    num_last = _num_last(num_experts)
    for leaf in range(num_last):
        leaf_E[leaf] = node_M[2 * num_experts - 1 - num_last + leaf]
    for leaf in range(num_experts - num_last):
        leaf_E[num_last + leaf] = node_M[num_experts - 1 + leaf]


@compiled()
def _to_leaves(leaf_E: Floats, node_M: Floats) -> None:
    """Copy the other way."""
    num_experts = leaf_E.shape[0]
    num_last = _num_last(num_experts)
    for leaf in range(num_last):
        node_M[2 * num_experts - 1 - num_last + leaf] = leaf_E[leaf]
    for leaf in range(num_experts - num_last):
        node_M[num_experts - 1 + leaf] = leaf_E[num_last + leaf]


@compiled()
def _log_masses(
    p_L: Floats,
    bits_L: Integers,
    score_L: Floats,
    mantissa_bits: int,
    exponent_bias: int,
    log_mass_L: Floats,
) -> None:
    """Write score + log(probability), up to 0.06 nats less; -inf where no row goes."""
    kind = p_L.dtype.type
    smallest = np.finfo(p_L.dtype).tiny
    # The bits of a float, read as an integer, are nearly its logarithm to base 2.
    log_scale = kind(LOG_2 / 2.0**mantissa_bits)
    log_of_one = kind(LOG_2 * exponent_bias)
    for leaf in range(p_L.shape[0]):
        log_mass = score_L[leaf] + (kind(bits_L[leaf]) * log_scale - log_of_one)
        log_mass_L[leaf] = kind(-np.inf) if p_L[leaf] < smallest else log_mass


@compiled()
def _exponents(p_L: Floats, score_L: Floats, largest: Number, exponent_L: Floats) -> None:
    """Write the scores less `largest`; 0 where no row goes. A NaN goes somewhere, and shows."""
    kind = p_L.dtype.type
    smallest = np.finfo(p_L.dtype).tiny
    for leaf in range(p_L.shape[0]):
        exponent = score_L[leaf] - largest
        exponent_L[leaf] = kind(0) if p_L[leaf] < smallest else exponent


@compiled()
def _largest(value_L: Floats) -> Number:
    largest = value_L.dtype.type(-np.inf)
    for value in value_L:
        largest = max(largest, value)
    return largest


@compiled()
def reach(
    start: int,
    stop: int,
    split_TS: Floats,
    score_TL: Floats,
    num_slots: int,
    gamma: float,
    hard: bool,  # noqa: FBT001 - compiled functions take no keywords
    mantissa_bits: int,
    exponent_bias: int,
    p_TL: Floats,
    bits_TL: Integers,
    exponent_TL: Floats,
) -> None:
    """Write the probabilities of the leaves, and the logarithms of their masses over those.

    `bits_TL` shows the memory of `p_TL` as integers. The exponents are the scores less about
    the largest score + log(probability) of the row, and 0 where the row does not go.
    """
    num_splits, num_experts = split_TS.shape[1] // num_slots, score_TL.shape[1] // num_slots
    block = max(1, BLOCK // split_TS.shape[1])
    left = np.empty(block * split_TS.shape[1], split_TS.dtype)
    right = np.empty_like(left)
    reached_M = np.empty(2 * num_experts - 1, split_TS.dtype)
    for first in range(start, stop, block):
        end = min(first + block, stop)
        _decide(split_TS[first:end].reshape(-1), gamma, hard, left, right)
        for row in range(first, end):
            for slot in range(num_slots):
                at = (row - first) * split_TS.shape[1] + slot * num_splits
                _walk_down(left[at : at + num_splits], right[at : at + num_splits], reached_M)
                _leaves_of(reached_M, p_TL[row, slot * num_experts : (slot + 1) * num_experts])
        _log_masses(
            p_TL[first:end].reshape(-1),
            bits_TL[first:end].reshape(-1),
            score_TL[first:end].reshape(-1),
            mantissa_bits,
            exponent_bias,
            exponent_TL[first:end].reshape(-1),
        )
        for row in range(first, end):
            exponent_L = exponent_TL[row]
            _exponents(p_TL[row], score_TL[row], _largest(exponent_L), exponent_L)


@compiled("reassoc", "contract")
def _masses(p_L: Floats, mass_L: Floats) -> Number:
    """Multiply by the probabilities in place, and return the sum."""
    kind = p_L.dtype.type
    smallest = np.finfo(p_L.dtype).tiny
    total = kind(0)
    for leaf in range(p_L.shape[0]):
        mass_L[leaf] *= kind(0) if p_L[leaf] < smallest else p_L[leaf]
        total += mass_L[leaf]
    return total


@compiled()
def share(start: int, stop: int, p_TL: Floats, weight_TL: Floats) -> None:
    """Turn masses over probabilities into weights, in place."""
    for row in range(start, stop):
        weight_L = weight_TL[row]
        total = _masses(p_TL[row], weight_L)
        for leaf in range(weight_L.shape[0]):
            weight_L[leaf] /= total


@compiled("contract")
def _slopes(split_N: Floats, gamma: float, left_N: Floats, right_N: Floats) -> None:
    """Write the derivatives of log S and -log(1 - S), S being the smooth step; 0 where flat."""
    kind = split_N.dtype.type
    zero, half, one, width = kind(0), kind(0.5), kind(1), kind(gamma)
    scale = kind(6) / width
    for node in range(split_N.shape[0]):
        up = split_N[node] / width + half
        down = one - up
        flat = (up <= zero) | (down <= zero)
        left = scale * down / (up * (one + (down + down)))
        right = scale * up / (down * (one + (up + up)))
        left_N[node] = zero if flat else left
        right_N[node] = zero if flat else right


@compiled("contract")
def _climb_up(left_N: Floats, right_N: Floats, grad_M: Floats, grad_N: Floats) -> None:
    """Write the gradients of the splits; `grad_M` ends with those of the leaves' logarithms."""
    for node in range(left_N.shape[0] - 1, -1, -1):
        left, right = grad_M[2 * node + 1], grad_M[2 * node + 2]
        grad_M[node] = left + right
        grad_N[node] = left_N[node] * left - right_N[node] * right


@compiled("reassoc", "contract")
def _dot(weight_L: Floats, grad_L: Floats) -> Number:
    total = weight_L.dtype.type(0)
    for leaf in range(weight_L.shape[0]):
        total += weight_L[leaf] * grad_L[leaf]
    return total


@compiled("contract")
def _grad_scores(weight_L: Floats, grad_L: Floats, grad_score_L: Floats) -> None:
    mean = _dot(weight_L, grad_L)
    for leaf in range(weight_L.shape[0]):
        grad_score_L[leaf] = weight_L[leaf] * (grad_L[leaf] - mean)


@compiled("contract")
def _grad_log_p(grad_score_L: Floats, p_L: Floats, grad_p_L: Floats, grad_log_p_L: Floats) -> None:
    # A probability multiplies a mass as the exponential of a score does.
    for leaf in range(p_L.shape[0]):
        grad_log_p_L[leaf] = grad_score_L[leaf] + p_L[leaf] * grad_p_L[leaf]


@compiled()
def grads(
    start: int,
    stop: int,
    split_TS: Floats,
    p_TL: Floats,
    weight_TL: Floats,
    num_slots: int,
    gamma: float,
    grad_weight_TL: Floats,
    grad_p_TL: Floats,
    grad_split_TS: Floats,
    grad_score_TL: Floats,
) -> None:
    """Write the gradients of the scores, given those of the weights and the probabilities."""
    num_splits, num_experts = split_TS.shape[1] // num_slots, p_TL.shape[1] // num_slots
    block = max(1, BLOCK // split_TS.shape[1])
    left = np.empty(block * split_TS.shape[1], split_TS.dtype)
    right = np.empty_like(left)
    grad_M = np.empty(2 * num_experts - 1, split_TS.dtype)
    grad_log_p_TL = np.empty((block, p_TL.shape[1]), split_TS.dtype)
    for first in range(start, stop, block):
        end = min(first + block, stop)
        _slopes(split_TS[first:end].reshape(-1), gamma, left, right)
        for row in range(first, end):
            _grad_scores(weight_TL[row], grad_weight_TL[row], grad_score_TL[row])
        _grad_log_p(
            grad_score_TL[first:end].reshape(-1),
            p_TL[first:end].reshape(-1),
            grad_p_TL[first:end].reshape(-1),
            grad_log_p_TL.reshape(-1),
        )
        for row in range(first, end):
            for slot in range(num_slots):
                at = (row - first) * split_TS.shape[1] + slot * num_splits
                leaves = slice(slot * num_experts, (slot + 1) * num_experts)
                _to_leaves(grad_log_p_TL[row - first, leaves], grad_M)
                _climb_up(
                    left[at : at + num_splits],
                    right[at : at + num_splits],
                    grad_M,
                    grad_split_TS[row, slot * num_splits : (slot + 1) * num_splits],
                )
