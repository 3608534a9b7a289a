"""DSelect-k: selectors that spell an expert in binary."""

import operator
from types import ModuleType

from moe_gates._array import Array, ArrayT, add_slots, softmax, widen
from moe_gates._checks import (
    check_axes,
    check_bool,
    check_floating,
    check_gamma,
    check_num_experts,
    check_same_dtype,
    check_shape,
    resolve,
)
from moe_gates._scale import in_units
from moe_gates._slots import SlotGate
from moe_gates._tree import combine_paths, depth, split_probabilities


def dselect_k_gate(
    bit_scores: ArrayT,
    selector_scores: ArrayT,
    /,
    *,
    num_experts: int,
    gamma: float,
    hard: bool = False,
    bit_scale: ArrayT | None = None,
    xp: ModuleType | None = None,
) -> SlotGate[ArrayT]:
    """Each of K selectors picks one expert by its binary code; a softmax weighs them.

    Parameters
    ----------
    bit_scores : array, shape (*batch, num_slots, num_bits), real floating
        Scores of the ceil(log2(num_experts)) bits of each selector, most significant
        first, in the unit of `gamma`: above ``gamma / 2`` the bit is 1, below
        ``-gamma / 2`` it is 0. The batch may be empty, ``()``: the static gate,
        which is the same for every row.
    selector_scores : array, shape (*batch, num_slots), same dtype
        Scores of the selectors in nats.
    num_experts : int
        Experts there are, at least 2.
    gamma : float
        Width of the band in which a bit is soft, in ``[1e-30, 1e30]``.
    hard : bool, default False
        Round each bit: a score > 0 is 1; 0 keeps the lower expert. Bits then get no
        gradient.
    bit_scale : array, optional
        Real floating, > 0, broadcastable to (num_slots, num_bits): unit of the bit scores,
        which are divided by it, so that `gamma` counts in it. By default `gamma` is in the
        scores' own unit. See `score_scale`.
    xp : array namespace, optional
        Inferred from the scores by default.

    Returns
    -------
    SlotGate
        Dimensionless weights >= 0. Rows sum to 1 if `num_experts` is a power of two;
        else to at most 1, as in the authors' code, because a code of `num_experts` or
        more selects nothing (with `hard`, a row can be all 0): see
        `unreachable_penalty`, and `normalize`. At most ``num_slots`` of a row are
        non-zero if `hard`, or once every bit is outside the band.
        Same dtype and device as the scores.

    Raises
    ------
    TypeError
        If dtypes are not real floating or differ, or another argument has the wrong type.
    ValueError
        If shapes do not match, or `num_experts` or `gamma` is out of range.

    References
    ----------
    Hazimeh et al., NeurIPS 2021, arXiv:2106.03760.

    Examples
    --------
    >>> import numpy as np
    >>> bits = np.asarray([[1.0, -1.0], [-1.0, 0.0]])  # the codes 10, and 00 or 01
    >>> gate = dselect_k_gate(bits, np.zeros(2), num_experts=4, gamma=1.0)
    >>> gate.weights.tolist()
    [0.25, 0.25, 0.5, 0.0]
    """
    xp = resolve(xp, bit_scores=bit_scores, selector_scores=selector_scores)
    check_num_experts(num_experts)
    check_gamma(gamma)
    check_bool("hard", hard)
    _check_scores(bit_scores, selector_scores, num_experts, xp)

    # A tree whose splits share one score a level. Its left child is bit 0.
    scaled = in_units("bit_scale", bit_scale, bit_scores, xp)
    bit_is_0, bit_is_1 = split_probabilities(-scaled, gamma=gamma, hard=hard, xp=xp)
    bits = [slice(bit, bit + 1) for bit in range(depth(num_experts))]
    levels = [(bit_is_0[..., bit], bit_is_1[..., bit]) for bit in bits]
    codes = combine_paths(levels, operator.mul, num_leaves=2 ** len(bits), xp=xp)
    probabilities = codes[..., :num_experts]
    slot_weights = softmax(widen(selector_scores, xp), xp)[..., None] * probabilities

    dtype = bit_scores.dtype
    return SlotGate(
        weights=xp.astype(add_slots(slot_weights, -2), dtype, copy=False),
        slot_weights=xp.astype(slot_weights, dtype, copy=False),
        slot_probabilities=xp.astype(probabilities, dtype, copy=False),
    )


def _check_scores(
    bit_scores: Array, selector_scores: Array, num_experts: int, xp: ModuleType
) -> None:
    check_floating("bit_scores", bit_scores, xp)
    check_floating("selector_scores", selector_scores, xp)
    check_same_dtype("selector_scores", selector_scores, "bit_scores", bit_scores)
    check_axes("selector_scores", selector_scores, ("num_slots",))
    because = "ceil(log2(num_experts)) bits for each of `selector_scores`"
    check_shape("bit_scores", bit_scores, (*selector_scores.shape, depth(num_experts)), because)
