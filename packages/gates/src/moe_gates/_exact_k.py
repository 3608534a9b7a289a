"""Exactly k experts a row, with the gradient of how likely each is to be among them."""

from types import ModuleType

from moe_gates._array import Array, ArrayT, stop_gradient, widen
from moe_gates._checks import check_axes, check_floating, check_k, check_shape, resolve
from moe_gates._selection import is_among_largest
from moe_gates._subset import draw, marginals, split_shares


def subset_marginals(scores: ArrayT, /, *, k: int, xp: ModuleType | None = None) -> ArrayT:
    """Probability of each expert to be in a random subset of `k` experts.

    A subset S has a probability proportional to the exponential of the sum of its
    scores: independent coin tosses with these log odds, given that there are `k` heads.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Log odds in nats, safe up to 1e4 in magnitude. A score of -inf forbids an
        expert; `k` of each row must be finite.
    k : int
        Size of the subset.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless, >= 0; rows sum to `k`, and entries are at most 1, up to rounding.
        Exact to a few roundings of each entry. The derivative of entry i in score j is
        the covariance of "i is in S" and "j is in S". Same dtype and device as
        `scores`.

    Raises
    ------
    TypeError
        If `scores` is not real floating or `k` is not an integer.
    ValueError
        If `k` is outside ``[1, num_experts]``.

    Notes
    -----
    Takes O(num_experts * k^2) time and memory a row, in O(log(num_experts)) steps.

    References
    ----------
    Ahmed, Zeng, Niepert and Van den Broeck, ICLR 2023, arXiv:2210.01941, theorem 1.
    The recursion over halves is ours: theirs takes `num_experts` steps.

    Examples
    --------
    >>> import numpy as np
    >>> subset_marginals(np.zeros(4), k=2).tolist()
    [0.5, 0.5, 0.5, 0.5]
    >>> odds = np.asarray([1.0, 2.0, 3.0])  # pairs: 1 x 2, 1 x 3, 2 x 3, of 11 in all
    >>> (11 * subset_marginals(np.log(odds), k=2)).round(6).tolist()
    [5.0, 8.0, 9.0]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    check_k(k, scores.shape[-1])
    wide = widen(scores, xp)
    probabilities = marginals(wide, split_shares(wide, k, xp), k, xp)
    narrow: ArrayT = xp.astype(probabilities, scores.dtype, copy=False)
    return narrow


def exact_k_gate(
    scores: ArrayT,
    /,
    *,
    k: int,
    uniforms: Array | None = None,
    xp: ModuleType | None = None,
) -> ArrayT:
    """Weight ``1 / k`` for each of exactly `k` experts, with the gradient of `subset_marginals`.

    The `k` largest scores are the most probable subset; with `uniforms` the subset is
    drawn with its probability instead. The values are those of the subset, the
    gradients those of the marginals divided by `k` (straight through), so that every
    expert gets one, selected or not, also with ``k=1``.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Log odds in nats, safe up to 1e4 in magnitude. A score of -inf forbids an
        expert; `k` of each row must be finite.
    k : int
        Experts per row. A tie keeps the lower index.
    uniforms : array, shape (*batch, num_experts - 1), real floating, optional
        Independent random numbers in ``[0, 1)``, drawn by the caller, float32 or wider.
        By default nothing is random.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights: exactly `k` of each row are ``1 / k``, the others 0; rows
        sum to 1. A weight says nothing of how sure the gate is: multiply by
        `subset_marginals` for that. Same dtype and device as `scores`.

    Raises
    ------
    TypeError
        If an array is not real floating or `k` is not an integer.
    ValueError
        If `k` is outside ``[1, num_experts]``, or shapes do not match.

    References
    ----------
    Ahmed, Zeng, Niepert and Van den Broeck, ICLR 2023, arXiv:2210.01941: SIMPLE.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.asarray([1.0, -1.0, 2.0, 0.0])
    >>> exact_k_gate(scores, k=2).tolist()
    [0.5, 0.0, 0.5, 0.0]
    >>> exact_k_gate(scores, k=2, uniforms=np.asarray([0.6, 0.05, 0.9])).tolist()
    [0.0, 0.5, 0.5, 0.0]
    """
    arrays = {"scores": scores} if uniforms is None else {"scores": scores, "uniforms": uniforms}
    xp = resolve(xp, **arrays)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    *batch, num_experts = scores.shape
    check_k(k, num_experts)
    wide = widen(scores, xp)
    shares = split_shares(wide, k, xp)
    if uniforms is None:
        selected = is_among_largest(wide, k, xp)
    else:
        check_floating("uniforms", uniforms, xp)
        check_shape("uniforms", uniforms, (*batch, num_experts - 1), "one less than `scores`")
        selected = draw(wide, shares, widen(uniforms, xp), k, xp)
    probabilities = marginals(wide, shares, k, xp)
    # Minus itself is exactly 0: the gradient goes through, the value stays.
    gradient_only = probabilities - stop_gradient(probabilities, xp)
    weights = (xp.astype(selected, wide.dtype) + gradient_only) / k
    narrow: ArrayT = xp.astype(weights, scores.dtype, copy=False)
    return narrow
