"""Top-k sparsemax: the nearest point of the simplex with few non-zeros."""

from types import ModuleType

from moe_gates._array import Array, ArrayT, widen
from moe_gates._checks import check_axes, check_floating, check_k, resolve
from moe_gates._selection import is_among_largest


def top_k_sparsemax_gate(scores: ArrayT, /, *, k: int, xp: ModuleType | None = None) -> ArrayT:
    """Project the scores of each row onto the points of the simplex with `k` non-zeros at most.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores, dimensionless: an expert whose score is 1 or more below the
        largest gets 0. A score of -inf forbids an expert; one of each row must be finite.
    k : int
        Most experts per row. A tie keeps the lower index.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Dimensionless weights: >= 0, rows sum to 1, at most `k` non-zero per row, fewer
        where scores are far apart; the nearest such point to the scores in Euclidean
        distance. ``k = num_experts`` is sparsemax. Same dtype and device as `scores`.
        A row with one non-zero is constant near its scores: it passes no gradient.

    Raises
    ------
    TypeError
        If `scores` is not real floating or `k` is not an integer.
    ValueError
        If `k` is outside ``[1, num_experts]``.

    References
    ----------
    Kyrillidis et al., ICML 2013, arXiv:1206.1529, algorithm 1: the projection keeps the
    `k` largest. Martins and Astudillo, ICML 2016, arXiv:1602.02068: sparsemax.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.asarray([1.0, 0.75, 0.5, -1.0])
    >>> top_k_sparsemax_gate(scores, k=2).tolist()
    [0.625, 0.375, 0.0, 0.0]
    >>> top_k_sparsemax_gate(4 * scores, k=2).tolist()
    [1.0, 0.0, 0.0, 0.0]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    check_k(k, scores.shape[-1])
    wide = widen(scores, xp)
    kept = is_among_largest(wide, k, xp)
    weights = _project(wide - xp.max(wide, axis=-1, keepdims=True), kept, k, xp)
    narrow: ArrayT = xp.astype(weights, scores.dtype, copy=False)
    return narrow


def _project(scores: Array, kept: Array, k: int, xp: ModuleType) -> Array:
    """Project the `k` scores kept, the largest of which is 0, onto the simplex."""
    # Michelot (JOTA 50, 1986): drop what is not above the threshold of those that are
    # left, until all are. Each pass drops one at least, so k - 1 passes leave none to
    # drop. No sort is needed, and the threshold is that of the support to the bit.
    support = kept
    for _ in range(k - 1):
        support = support & (scores > _threshold(scores, support, xp))
    return xp.where(support, scores - _threshold(scores, support, xp), 0.0)


def _threshold(scores: Array, support: Array, xp: ModuleType) -> Array:
    """Return what to subtract for the scores in `support` to sum to 1."""
    total = xp.sum(xp.where(support, scores, 0.0), axis=-1, keepdims=True)
    return (total - 1) / xp.sum(xp.astype(support, scores.dtype), axis=-1, keepdims=True)
