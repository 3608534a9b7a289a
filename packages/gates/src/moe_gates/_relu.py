"""ReLU routing: positive scores are the weights."""

from types import ModuleType

from moe_gates._array import ArrayT, widen
from moe_gates._checks import check_axes, check_floating, check_k, resolve
from moe_gates._selection import is_among_largest


def relu_gate(scores: ArrayT, /, *, k: int, xp: ModuleType | None = None) -> ArrayT:
    """Weigh experts by their scores where these are positive and among the `k` largest.

    Parameters
    ----------
    scores : array, shape (*batch, num_experts), real floating
        Router scores, in the unit of the weights.
    k : int
        Most experts per row. A tie keeps the lower index. With ``num_experts`` there is
        no cap, as published.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (*batch, num_experts)
        Weights >= 0, at most `k` non-zero per row. Rows do not sum to 1, and a row
        without a positive score is all 0: it uses no expert and passes no gradient, so
        scores should start positive. Continuous in the scores wherever `k` experts or
        fewer are positive. Same dtype and device as `scores`.

    Raises
    ------
    TypeError
        If `scores` is not real floating or `k` is not an integer.
    ValueError
        If `k` is outside ``[1, num_experts]``.

    References
    ----------
    Wang et al., ICLR 2025, arXiv:2412.14711: ReMoE. The cap is ours: it bounds the cost.

    Examples
    --------
    >>> import numpy as np
    >>> relu_gate(np.asarray([0.5, -1.0, 2.0, 0.25]), k=2).tolist()
    [0.5, 0.0, 2.0, 0.0]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_experts",))
    check_k(k, scores.shape[-1])
    wide = widen(scores, xp)
    kept = is_among_largest(wide, k, xp) & (wide > 0)
    weights: ArrayT = xp.astype(xp.where(kept, wide, 0.0), scores.dtype, copy=False)
    return weights
