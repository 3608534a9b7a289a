"""Tree top-k: COMET's trees with logistic splits, and exactly k experts at all times."""

import math
import operator
from types import ModuleType

from moe_gates._array import Array, ArrayT, log_sigmoid, smallest_normal, stop_gradient, widen
from moe_gates._checks import check_k, check_tree_scores, resolve
from moe_gates._selection import is_among_largest
from moe_gates._slots import SlotGate
from moe_gates._tree import combine_paths, split_levels


def tree_top_k_gate(
    split_scores: ArrayT,
    leaf_scores: ArrayT,
    /,
    *,
    k: int,
    xp: ModuleType | None = None,
) -> SlotGate[ArrayT]:
    """K soft trees score the experts together; a softmax weighs exactly `k` of them.

    The trees are those of `comet_gate` with a logistic split instead of a smooth-step,
    which is never saturated. The score of an expert is the logarithm of the sum over
    trees of its probability in the tree times the exponential of its leaf score; the
    `k` largest are kept, in training as afterwards.

    Parameters
    ----------
    split_scores : array, shape (*batch, num_slots, num_experts - 1), real floating
        Log odds of going left, in nats, of the splits of each tree in heap order. Safe
        up to 1e4 in magnitude.
    leaf_scores : array, shape (*batch, num_slots, num_experts), same dtype
        Scores of the leaves in nats, in the order of the experts, which are the
        leaves from left to right. Safe up to 1e4 in magnitude.
    k : int
        Experts per row. A tie keeps the lower index.
    xp : array namespace, optional
        Inferred from the scores by default.

    Returns
    -------
    SlotGate
        Dimensionless weights: >= 0, rows sum to 1, exactly `k` of each row are non-zero:
        one that would underflow is kept at the smallest normal number of the dtype, or
        just above (6.1e-5 in float16, else 1.2e-38 or less). Rows of each slot in
        `slot_probabilities` sum to 1; 0 only where they underflow. Same dtype and device as the
        scores. With ``k=1`` the weights are constant, so no gradient reaches the scores.

    Raises
    ------
    TypeError
        If dtypes are not real floating or differ, or `k` is not an integer.
    ValueError
        If shapes do not match, there are fewer than 2 experts, or `k` is outside
        ``[1, num_experts]``.

    References
    ----------
    Trees: Ibrahim et al., KDD 2023, arXiv:2306.02824; selection: Shazeer et al., ICLR
    2017, arXiv:1701.06538. Together they are ours, and not published.

    Examples
    --------
    >>> import numpy as np
    >>> splits = np.asarray([[2.0, -2.0, 0.0], [-2.0, 0.0, 2.0]])  # two trees, four experts
    >>> gate = tree_top_k_gate(splits, np.zeros((2, 4)), k=2)
    >>> gate.weights.round(3).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    xp = resolve(xp, split_scores=split_scores, leaf_scores=leaf_scores)
    check_tree_scores(split_scores, leaf_scores, xp)
    num_experts, dtype = leaf_scores.shape[-1], leaf_scores.dtype
    check_k(k, num_experts)

    splits = widen(split_scores, xp)
    left, right = log_sigmoid(splits, xp), log_sigmoid(-splits, xp)
    levels = split_levels(left, right, num_experts)
    # In logarithms no path is so unlikely that it underflows.
    log_probabilities = combine_paths(levels, operator.add, num_leaves=num_experts, xp=xp)
    expert_scores, shares = _log_sum_exp(widen(leaf_scores, xp) + log_probabilities, xp)
    weights = _softmax_of_largest(expert_scores, k, smallest_normal(dtype, xp), xp)

    return SlotGate(
        weights=xp.astype(weights, dtype, copy=False),
        slot_weights=xp.astype(weights[..., None, :] * shares, dtype, copy=False),
        slot_probabilities=xp.astype(xp.exp(log_probabilities), dtype, copy=False),
    )


def _log_sum_exp(scores: Array, xp: ModuleType) -> tuple[Array, Array]:
    """Logarithm of the sum over slots of exp(score), and the share of each slot in it."""
    largest = stop_gradient(xp.max(scores, axis=-2, keepdims=True), xp)
    exps = xp.exp(scores - largest)
    total = xp.sum(exps, axis=-2, keepdims=True)
    return (largest + xp.log(total))[..., 0, :], exps / total


def _softmax_of_largest(scores: Array, k: int, smallest: float, xp: ModuleType) -> Array:
    """Softmax over the `k` largest scores, none of which gets less than `smallest`."""
    kept = is_among_largest(scores, k, xp)
    below = xp.where(kept, scores - xp.max(scores, axis=-1, keepdims=True), 0.0)
    # The sum of k terms, the largest of which is 1, is at most k. The 2 is for rounding.
    lowest = math.log(2 * k * smallest)
    exps = xp.where(kept, xp.exp(xp.where(below > lowest, below, lowest)), 0.0)
    return exps / xp.sum(exps, axis=-1, keepdims=True)
