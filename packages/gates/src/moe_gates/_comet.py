"""COMET: trees that share one softmax."""

import operator
from types import ModuleType

from moe_gates._array import Array, ArrayT, add_slots, smallest_normal, whole_part, widen
from moe_gates._checks import check_bool, check_gamma, check_tree_scores, resolve
from moe_gates._scale import in_units
from moe_gates._slots import SlotGate
from moe_gates._tree import combine_paths, split_levels, split_probabilities


def comet_gate(
    split_scores: ArrayT,
    leaf_scores: ArrayT,
    /,
    *,
    gamma: float,
    hard: bool = False,
    split_scale: ArrayT | None = None,
    xp: ModuleType | None = None,
) -> SlotGate[ArrayT]:
    """Each of K trees leads a row to one expert; one softmax weighs what they reach.

    The weight of an expert is proportional to the sum over trees of its probability
    in the tree times the exponential of its leaf score.

    Parameters
    ----------
    split_scores : array, shape (*batch, num_slots, num_experts - 1), real floating
        Scores of the splits of each tree in heap order, in the unit of `gamma`:
        above ``gamma / 2`` a row goes left only, below ``-gamma / 2`` right only.
    leaf_scores : array, shape (*batch, num_slots, num_experts), same dtype
        Scores of the leaves in nats, in the order of the experts, which are the
        leaves from left to right. Safe up to 1e4 in magnitude.
    gamma : float
        Width of the band in which a split is soft, in ``[1e-30, 1e30]``.
    hard : bool, default False
        Round each split: a score >= 0 goes left. Splits then get no gradient.
    split_scale : array, optional
        Real floating, > 0, broadcastable to (num_slots, num_experts - 1): unit of the
        split scores, which are divided by it, so that `gamma` counts in it. By default
        `gamma` is in the scores' own unit. See `score_scale`.
    xp : array namespace, optional
        Inferred from the scores by default.

    Returns
    -------
    SlotGate
        Dimensionless weights: >= 0, rows sum to 1. At most ``num_slots`` of a row are
        non-zero if `hard`, or once every split of the row is outside the band;
        while splits are inside it, more can be. Rows of each slot in
        `slot_probabilities` sum to 1. Same dtype and device as the scores.

    Raises
    ------
    TypeError
        If dtypes are not real floating or differ, `gamma` is not a real number, or `hard`
        is not a bool.
    ValueError
        If shapes do not match, there are fewer than 2 experts, or `gamma` is out of range.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824. The authors' code adds 1e-8 inside a
    logarithm; no epsilon is needed here.

    Examples
    --------
    >>> import numpy as np
    >>> splits = np.asarray([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]])  # two trees, four experts
    >>> gate = comet_gate(splits, np.zeros((2, 4)), gamma=1.0)
    >>> gate.weights.tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    xp = resolve(xp, split_scores=split_scores, leaf_scores=leaf_scores)
    check_gamma(gamma)
    check_bool("hard", hard)
    check_tree_scores(split_scores, leaf_scores, xp)
    num_experts = leaf_scores.shape[-1]

    splits = in_units("split_scale", split_scale, split_scores, xp)
    left, right = split_probabilities(splits, gamma=gamma, hard=hard, xp=xp)
    levels = split_levels(left, right, num_experts)
    probabilities = combine_paths(levels, operator.mul, num_leaves=num_experts, xp=xp)
    slot_weights = _weighted_softmax(widen(leaf_scores, xp), probabilities, xp)

    dtype = leaf_scores.dtype
    return SlotGate(
        weights=xp.astype(add_slots(slot_weights, -2), dtype, copy=False),
        slot_weights=xp.astype(slot_weights, dtype, copy=False),
        slot_probabilities=xp.astype(probabilities, dtype, copy=False),
    )


def _weighted_softmax(scores: Array, probabilities: Array, xp: ModuleType) -> Array:
    """Softmax of scores + log(probabilities) over the last two axes."""
    # Computed as p exp(score - shift), which has no infinite gradient at p = 0. Subnormal
    # probabilities count as 0, because some libraries flush them. Products with 0 and 1
    # instead of `where`, which takes forty times as long in PyTorch (2.13, CPU).
    smallest = smallest_normal(probabilities.dtype, xp)
    reached = xp.astype(probabilities >= smallest, scores.dtype)
    shift = _shift(scores, probabilities, reached, xp)
    mass = (probabilities * reached) * xp.exp((scores - shift) * reached)
    # Slot by slot: a hard gate then adds up the same numbers as `comet_route`, and zeros.
    total = add_slots(xp.sum(mass, axis=-1), -1)
    return mass / total[..., None, None]


def _shift(scores: Array, probabilities: Array, reached: Array, xp: ModuleType) -> Array:
    """Return the largest score + log(probability) of a reached leaf, cut to an integer."""
    # The sum of the masses is then at least 1 / e. With the largest score alone it
    # underflows when that score belongs to a leaf that is barely reached.
    finfo = xp.finfo(scores.dtype)
    log_probabilities = xp.log(xp.clip(probabilities, float(finfo.smallest_normal), 1.0))
    out_of_reach = (reached - 1) * (float(finfo.max) / 2)
    largest = xp.max(scores + log_probabilities + out_of_reach, axis=(-2, -1), keepdims=True)
    return whole_part(largest, xp)
