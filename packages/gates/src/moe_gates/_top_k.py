"""Top-k: the experts with the largest scores, weighted by their affinities."""

from types import ModuleType
from typing import Literal, TypeAlias

from moe_gates._array import Array, ArrayT, log_sigmoid, softmax, widen
from moe_gates._checks import (
    check_axes,
    check_bool,
    check_choice,
    check_floating,
    check_k,
    check_shape,
    resolve,
)
from moe_gates._groups import check_groups, keep_best_groups
from moe_gates._selection import is_among_largest

Affinity: TypeAlias = Literal["softmax", "sigmoid"]
AFFINITIES = ("softmax", "sigmoid")


def top_k_gate(
    scores: ArrayT,
    /,
    *,
    k: int,
    affinity: Affinity = "softmax",
    renormalize: bool = True,
    noise: ArrayT | None = None,
    bias: Array | None = None,
    num_groups: int = 1,
    num_groups_kept: int = 1,
    xp: ModuleType | None = None,
) -> ArrayT:
    """Weigh the `k` experts of the largest scores by their affinities; others get 0.

    By default a softmax over the `k` largest scores. Routers of Switch, GShard,
    Noisy top-k, V-MoE, X-MoE and DeepSeek-V3 are settings of it: see the README.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores in nats: a difference of 1 is an odds ratio of e. A score of
        -inf forbids an expert; one of each row must be finite.
    k : int
        Experts kept per row. A tie keeps the lower index.
    affinity : {"softmax", "sigmoid"}, default "softmax"
        What turns a score into a dimensionless affinity in [0, 1]: the softmax over all
        experts, or the logistic function of each score alone.
    renormalize : bool, default True
        Divide the affinities kept by their sum.
    noise : array, shape of `scores`, real floating, optional
        Added to the scores, in nats. Drawn and scaled by the caller.
    bias : array, shape (num_experts,), real floating, optional
        Added to the affinities, in their unit, to select experts and for nothing else:
        weights and gradients know nothing of it. It balances the load.
    num_groups : int, default 1
        Groups of equal size that the experts form, neighbours together.
    num_groups_kept : int, default 1
        Groups per row that experts are selected from: those whose two largest
        affinities, biased, have the largest sums.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights: >= 0, at most `k` non-zero per row. Rows sum to 1 if
        `renormalize`; else to the affinities kept, at most 1 (softmax) or `k`
        (sigmoid). Same dtype and device as `scores`. With ``k=1`` and `renormalize`
        the weights are constant, so no gradient reaches the scores.

    Raises
    ------
    TypeError
        If an array is not real floating, a number is not an integer, or `renormalize`
        not a bool.
    ValueError
        If `k` is outside ``[1, num_experts]`` or more than the groups kept have,
        `affinity` is unknown, `num_groups` does not divide the number of experts, or
        shapes do not match.

    References
    ----------
    Shazeer et al., ICLR 2017, arXiv:1701.06538, eqs. (3) and (5). Bias: Wang et al.,
    arXiv:2408.15664. Sigmoid, bias and groups: DeepSeek-V3, arXiv:2412.19437, eqs.
    (12) to (16) and section 2.1.2; sums of two as in its released code.

    Examples
    --------
    >>> import numpy as np
    >>> top_k_gate(np.asarray([3.0, 1.0, 3.0, 2.0]), k=2).tolist()
    [0.5, 0.0, 0.5, 0.0]
    >>> scores = np.log(np.asarray([5.0, 1.0, 2.0]))
    >>> top_k_gate(scores, k=1, renormalize=False).tolist()
    [0.625, 0.0, 0.0]
    >>> rare = np.asarray([-1.0, 0.0, 0.0])
    >>> top_k_gate(scores, k=1, renormalize=False, bias=rare).tolist()
    [0.0, 0.0, 0.25]
    """
    given = {"noise": noise, "bias": bias}
    given = {name: array for name, array in given.items() if array is not None}
    xp = resolve(xp, scores=scores, **given)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    num_experts = scores.shape[-1]
    check_k(k, num_experts)
    check_choice("affinity", affinity, AFFINITIES)
    check_bool("renormalize", renormalize)
    check_groups(k, num_groups, num_groups_kept, num_experts)
    _check_addend("noise", noise, scores.shape, "that of `scores`", xp)
    _check_addend("bias", bias, (num_experts,), "one for each expert", xp)

    noisy = widen(scores, xp) if noise is None else widen(scores, xp) + widen(noise, xp)
    if bias is None and num_groups == num_groups_kept:
        # An affinity grows with its score, but rounding makes ties that scores have not.
        ranks = noisy
    else:
        ranks = _biased_affinities(noisy, affinity, bias, xp)
        ranks = keep_best_groups(ranks, num_groups, num_groups_kept, xp)
    kept = is_among_largest(ranks, k, xp)
    if num_groups_kept < num_groups:  # no other group fills up one that has fewer than k
        kept = kept & (ranks > -xp.inf)
    weights = _weigh(noisy, kept, affinity, renormalize=renormalize, xp=xp)
    narrow: ArrayT = xp.astype(weights, scores.dtype, copy=False)
    return narrow


def _check_addend(
    name: str, array: Array | None, shape: tuple[int, ...], because: str, xp: ModuleType
) -> None:
    if array is not None:
        check_floating(name, array, xp)
        check_shape(name, array, tuple(shape), because)


def _affinities(scores: Array, affinity: Affinity, xp: ModuleType) -> Array:
    return softmax(scores, xp) if affinity == "softmax" else xp.exp(log_sigmoid(scores, xp))


def _biased_affinities(
    scores: Array, affinity: Affinity, bias: Array | None, xp: ModuleType
) -> Array:
    """Affinity + bias; no bias brings back an expert that is forbidden."""
    affinities = _affinities(scores, affinity, xp)
    biased = affinities if bias is None else affinities + widen(bias, xp)
    return xp.where(scores > -xp.inf, biased, -xp.inf)


def _weigh(
    scores: Array, kept: Array, affinity: Affinity, *, renormalize: bool, xp: ModuleType
) -> Array:
    """Affinities of the experts kept, which sum to 1 if `renormalize`."""
    if not renormalize:
        return xp.where(kept, _affinities(scores, affinity, xp), 0.0)
    # In logarithms, since all affinities kept can underflow. Those of a softmax are
    # the scores, up to a constant that cancels.
    logarithms = scores if affinity == "softmax" else log_sigmoid(scores, xp)
    return softmax(xp.where(kept, logarithms, -xp.inf), xp)
