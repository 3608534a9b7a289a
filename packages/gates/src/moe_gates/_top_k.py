"""Top-k: a softmax over the largest scores."""

from types import ModuleType

from moe_gates._array import Array, ArrayT, count_up, softmax, widen
from moe_gates._checks import check_axes, check_floating, check_k, resolve


def top_k_gate(scores: ArrayT, /, *, k: int, xp: ModuleType | None = None) -> ArrayT:
    """Softmax over the `k` largest scores of each row; every other expert gets 0.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores in nats: a difference of 1 is an odds ratio of e. A score of
        -inf forbids an expert; one of each row must be finite.
    k : int
        Experts kept per row. A tie keeps the lower index.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights: >= 0, rows sum to 1, at most `k` non-zero per row.
        Same dtype and device as `scores`. With ``k=1`` the weights are constant, so
        no gradient reaches the scores.

    Raises
    ------
    TypeError
        If `scores` is not real floating or `k` is not an integer.
    ValueError
        If `k` is outside ``[1, num_experts]``.

    References
    ----------
    Shazeer et al., ICLR 2017, arXiv:1701.06538, eqs. (3) and (5).

    Examples
    --------
    >>> import numpy as np
    >>> top_k_gate(np.asarray([3.0, 1.0, 3.0, 2.0]), k=2).tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    check_k(k, scores.shape[-1])
    wide = widen(scores, xp)
    weights = softmax(xp.where(_is_among_largest(wide, k, xp), wide, -xp.inf), xp)
    narrow: ArrayT = xp.astype(weights, scores.dtype, copy=False)
    return narrow


def _is_among_largest(scores: Array, k: int, xp: ModuleType) -> Array:
    """Mark the `k` largest scores of each row; a tie marks the lower index."""
    # k passes of argmax, the first of equal scores each: torch.onnx (2.13) cannot
    # export the sort that argsort needs, and comparing all pairs takes E times the memory.
    index = count_up(scores.shape[-1], scores, xp)
    marked = xp.zeros_like(scores, dtype=xp.bool)
    for _ in range(k):
        best = xp.argmax(xp.where(marked, -xp.inf, scores), axis=-1, keepdims=True)
        marked = marked | (index == best)
    return marked
