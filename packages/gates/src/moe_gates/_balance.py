"""Even load: by a penalty, or by a bias on the scores that decide the selection."""

import math
from types import ModuleType

from moe_gates._array import Array, ArrayT, widen
from moe_gates._checks import (
    check_axes,
    check_floating,
    check_k,
    check_one_axis,
    check_real,
    check_same_dtype,
    check_shape,
    resolve,
)


def load_balance_penalty(
    probabilities: ArrayT, weights: ArrayT, /, *, xp: ModuleType | None = None
) -> ArrayT:
    """E times the sum over experts of their share of the pairs times their mean probability.

    Parameters
    ----------
    probabilities : array, shape (*batch, num_experts), real floating
        Softmax of all router scores, before any selection. The gradient goes here.
    weights : array, shape of `probabilities`, real floating
        Weights of the gate: a non-zero one is a pair, a row that an expert computes.
        Only that counts, so there is no gradient.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape ()
        Dimensionless: 1 at even load, whatever the number of experts a row; up to
        `num_experts` if one expert has all; 0 without rows or pairs. Same dtype and device as
        `probabilities`. Multiplied by 1e-2 by the authors.

    Raises
    ------
    TypeError
        If an array is not real floating.
    ValueError
        If `probabilities` has no expert axis or shapes differ.

    References
    ----------
    Fedus, Zoph and Shazeer, "Switch Transformers", arXiv:2101.03961, eqs. (4)-(6), where
    each row has one expert. With more, the shares here still sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> probabilities = np.asarray([[0.75, 0.25], [0.75, 0.25]])
    >>> float(load_balance_penalty(probabilities, np.asarray([[1.0, 0.0], [1.0, 0.0]])))
    1.5
    """
    xp = resolve(xp, probabilities=probabilities, weights=weights)
    check_floating("probabilities", probabilities, xp)
    check_floating("weights", weights, xp)
    check_axes("probabilities", probabilities, ("num_experts",))
    check_shape("weights", weights, tuple(probabilities.shape), "that of `probabilities`")
    num_experts = probabilities.shape[-1]
    rows = (math.prod(probabilities.shape[:-1]), num_experts)
    wide = xp.reshape(widen(probabilities, xp), rows)
    # Counted in integers: a float32 sum of ones stops growing at 2**24 rows.
    pairs = xp.sum(xp.astype(xp.reshape(weights, rows) != 0, xp.int32), axis=0)
    num_pairs = xp.astype(xp.sum(pairs), wide.dtype)
    share = xp.astype(pairs, wide.dtype) / xp.where(num_pairs > 0, num_pairs, 1.0)
    mean = xp.sum(wide / max(rows[0], 1), axis=0)
    total = num_experts * xp.sum(share * mean)
    penalty: ArrayT = xp.astype(total, probabilities.dtype, copy=False)
    return penalty


def update_bias_by_sign(
    bias: ArrayT, load: Array, /, *, rate: float, xp: ModuleType | None = None
) -> ArrayT:
    """Raise the bias of experts below the mean load by `rate`, lower that of those above.

    Parameters
    ----------
    bias : array, shape (num_experts,), real floating
        Added to the affinities for the selection only, never to the weights.
    load : array, shape (num_experts,), real floating
        Of the last batch, selected with `bias`: `expert_load`, or counts.
    rate : float
        Step, > 0, in the unit of the affinities. The authors use 1e-3 with affinities in
        [0, 1].
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape (num_experts,)
        ``bias + rate sign(mean(load) - load)``; `bias` itself if all loads are equal. Same
        dtype and device as `bias`.

    Raises
    ------
    TypeError
        If an array is not real floating or `rate` not a real number.
    ValueError
        If `bias` has not one axis, shapes differ, or `rate` is not finite and > 0.

    References
    ----------
    Wang et al., "Auxiliary-Loss-Free Load Balancing", arXiv:2408.15664, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> update_bias_by_sign(np.zeros(3), np.asarray([0.75, 0.25, 0.5]), rate=0.01).tolist()
    [-0.01, 0.01, 0.0]
    """
    xp = resolve(xp, bias=bias, load=load)
    check_floating("bias", bias, xp)
    check_floating("load", load, xp)
    check_one_axis("bias", bias)
    check_shape("load", load, tuple(bias.shape), "that of `bias`")
    check_real("rate", rate, positive=True)
    wide = widen(load, xp)
    # Beyond the smallest load: equal loads then have the mean exactly, without rounding.
    excess = wide - xp.min(wide)
    step = rate * xp.sign(xp.mean(excess) - excess)
    updated: ArrayT = xp.astype(widen(bias, xp) + step, bias.dtype, copy=False)
    return updated


def update_bias_by_quantile(
    bias: ArrayT, affinities: ArrayT, /, *, k: int, xp: ModuleType | None = None
) -> ArrayT:
    """Move each bias to where its expert passes the thresholds of k / E of the rows.

    The threshold of a row lies between its `k`-th and next largest affinity + bias: what
    is above is selected. Against thresholds that stay, one quantile of the differences
    makes the load of each expert even, without a rate to choose. As the other biases move
    the thresholds, repeat it, on one batch or from batch to batch.

    Parameters
    ----------
    bias : array, shape (num_experts,), real floating
        Added to the affinities for the selection only, never to the weights.
    affinities : array, shape (*batch, num_experts), same dtype
        Of a batch: what the selection compares, without the bias.
    k : int
        Experts a row, in ``[1, num_experts]``.
    xp : array namespace, optional
        Inferred from the arrays by default.

    Returns
    -------
    array, shape (num_experts,)
        Unchanged for an expert whose load is even already, which is ``rows * k / num_experts``
        rounded down or up; otherwise in the middle of the biases that make it so. `bias`
        itself with fewer than two rows, or ``k = num_experts``. Same dtype and device as `bias`.

    Raises
    ------
    TypeError
        If an array is not real floating, dtypes differ, or `k` is not an integer.
    ValueError
        If shapes do not match or `k` is outside ``[1, num_experts]``.

    Notes
    -----
    A step of coordinate descent on the dual of the linear program that assigns `k` experts
    to each row, and the same number of rows to each expert, for the largest sum of
    affinities; thresholds and biases are its dual variables. It sorts, so it belongs in
    the training loop, and not into a graph for ONNX.

    References
    ----------
    Sun et al., "Binary-Integer-Programming Based Algorithm for Expert Load Balancing",
    arXiv:2502.15451, where loads are bounded from above only. With both bounds,
    as here: J. Su, "quantile balancing", 2026, https://kexue.fm/archives/11619.

    Examples
    --------
    >>> import numpy as np
    >>> affinities = np.asarray([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.5]])
    >>> bias = update_bias_by_quantile(np.zeros(2), affinities, k=1)
    >>> np.argmax(affinities + bias, axis=-1).tolist()
    [0, 0, 1, 1]
    """
    xp = resolve(xp, bias=bias, affinities=affinities)
    check_floating("bias", bias, xp)
    check_floating("affinities", affinities, xp)
    check_same_dtype("bias", bias, "affinities", affinities)
    check_axes("affinities", affinities, ("num_experts",))
    *batch, num_experts = affinities.shape
    check_shape("bias", bias, (num_experts,), "one for each expert of `affinities`")
    check_k(k, num_experts)
    num_rows = math.prod(batch)
    if num_rows < 2 or k == num_experts:
        return bias
    wide = xp.reshape(widen(affinities, xp), (num_rows, num_experts))
    updated = _move_to_quantile(widen(bias, xp), wide, k, xp)
    narrow: ArrayT = xp.astype(updated, bias.dtype, copy=False)
    return narrow


def _move_to_quantile(bias: Array, affinities: Array, k: int, xp: ModuleType) -> Array:
    num_rows, num_experts = affinities.shape
    ranked = xp.sort(affinities + bias, axis=-1)
    threshold = (ranked[:, num_experts - k] + ranked[:, num_experts - k - 1]) / 2
    margins = affinities - threshold[:, None]
    load = xp.sum(xp.astype(margins + bias > 0, xp.int32), axis=0)
    least, most = num_rows * k // num_experts, -(-num_rows * k // num_experts)
    is_even = (load >= least) & (load <= most)
    # The middle between the margin of the last row to pass and the first one not to.
    num_passing = min(max(least, 1), num_rows - 1)
    margins = xp.sort(margins, axis=0)
    middle = (margins[num_rows - num_passing, :] + margins[num_rows - num_passing - 1, :]) / 2
    return xp.where(is_even, bias, -middle)
