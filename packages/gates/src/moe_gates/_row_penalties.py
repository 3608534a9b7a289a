"""Penalties on the scores and weights of gates without slots."""

from types import ModuleType

from moe_gates._array import ArrayT, count_up, mean_over_rows, widen
from moe_gates._checks import check_axes, check_floating, check_k, resolve


def z_penalty(scores: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Router z-loss: mean over rows of log(sum of exp(score)) squared.

    Keeps scores small, so that they stay exact in low precision.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores in nats. A score of -inf forbids an expert; one of each row must
        be finite.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape ()
        In nats squared, >= 0; 0 without rows. Same dtype and device as `scores`, so that
        it can overflow in float16. Multiplied by 1e-3 by the authors.

    Raises
    ------
    TypeError
        If `scores` is not real floating.
    ValueError
        If `scores` has no expert axis.

    References
    ----------
    Zoph et al., "ST-MoE", arXiv:2202.08906, eq. (5).

    Examples
    --------
    >>> import numpy as np
    >>> round(float(z_penalty(np.zeros((3, 2)))), 4)  # log(2) squared
    0.4805
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    wide = widen(scores, xp)
    largest = xp.max(wide, axis=-1, keepdims=True)
    log_sums = largest[..., 0] + xp.log(xp.sum(xp.exp(wide - largest), axis=-1))
    penalty: ArrayT = xp.astype(mean_over_rows(log_sums**2, xp), scores.dtype, copy=False)
    return penalty


def trimmed_lasso_penalty(weights: ArrayT, /, *, k: int, xp: ModuleType | None = None) -> ArrayT:
    """Mean over rows of the sum of all but the `k` largest weights.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a soft gate, >= 0.
    k : int
        Weights of a row that are free, in ``[1, num_experts]``. A tie frees the lower
        expert. Its cost is that many passes over the weights.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape ()
        Dimensionless, >= 0, and 0 just if no row has more than `k` non-zero weights;
        0 without rows. At most 1 if rows sum to 1. Same dtype and device as `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating or `k` is not an integer.
    ValueError
        If `weights` has no expert axis or `k` is outside ``[1, num_experts]``.

    References
    ----------
    Bertsimas, Copenhaver and Mazumder, "The Trimmed Lasso", arXiv:1708.04527, eq. (3).

    Examples
    --------
    >>> import numpy as np
    >>> float(trimmed_lasso_penalty(np.asarray([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), k=1))
    0.25
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    check_k(k, weights.shape[-1])
    rest = widen(weights, xp)
    expert = count_up(weights.shape[-1], weights, xp)
    for _ in range(k):
        best = xp.argmax(rest, axis=-1, keepdims=True)
        rest = xp.where(expert == best, 0.0, rest)
    total = mean_over_rows(xp.sum(rest, axis=-1), xp)
    penalty: ArrayT = xp.astype(total, weights.dtype, copy=False)
    return penalty
