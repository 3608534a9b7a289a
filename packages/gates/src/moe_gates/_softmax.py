"""Softmax: every expert, the dense reference for the sparse gates."""

from types import ModuleType

from moe_gates._array import ArrayT, softmax, widen
from moe_gates._checks import check_axes, check_floating, resolve


def softmax_gate(scores: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Softmax over all scores of each row: every expert gets a share.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores in nats: a difference of 1 is an odds ratio of e. A score of
        -inf forbids an expert; one of each row must be finite.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights: >= 0, rows sum to 1. Dense: a weight is 0 only where it
        underflows, or is forbidden. Same dtype and device as `scores`.

    Raises
    ------
    TypeError
        If `scores` is not real floating.
    ValueError
        If `scores` has no expert axis.

    References
    ----------
    Jacobs et al., Neural Computation 3(1), 1991: adaptive mixtures of local experts.

    Examples
    --------
    >>> import numpy as np
    >>> softmax_gate(np.log(np.asarray([1.0, 2.0, 1.0]))).tolist()
    [0.25, 0.5, 0.25]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    weights: ArrayT = xp.astype(softmax(widen(scores, xp), xp), scores.dtype, copy=False)
    return weights
