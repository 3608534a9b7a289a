"""What a gate does to a batch: for people to read, not to train on."""

import math
from types import ModuleType
from typing import Any

from moe_gates._array import Array, ArrayT, widen
from moe_gates._checks import check_axes, check_floating, check_gamma, resolve


def count_nonzero(weights: Array, /, *, xp: ModuleType | None = None) -> Any:  # noqa: ANN401
    """Count the experts that each row selects.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape (*batch,), the default integer dtype
        Non-zero weights per row, in ``[0, num_experts]``.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has no expert axis.

    Examples
    --------
    >>> import numpy as np
    >>> count_nonzero(np.asarray([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [2, 1]
    """
    xp = resolve(xp, weights=weights)
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    return _count(weights != 0, -1, xp)


def expert_load(weights: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Share of the rows that select each expert.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape (num_experts,)
        Dimensionless, in [0, 1]; the sum is the mean number of experts per row.
        Zeros without rows. Same dtype and device as `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has no expert axis.

    Examples
    --------
    >>> import numpy as np
    >>> expert_load(np.asarray([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [0.5, 1.0, 0.0]
    """
    xp = resolve(xp, weights=weights)
    selected = _selected(weights, xp)
    # Counted in integers: a float32 sum of ones stops growing at 2**24 rows.
    counts = xp.astype(_count(selected, 0, xp), widen(weights, xp).dtype)
    load: ArrayT = xp.astype(counts / max(selected.shape[0], 1), weights.dtype, copy=False)
    return load


def dead_experts(weights: Array, /, *, xp: ModuleType | None = None) -> Any:  # noqa: ANN401
    """Mark the experts that no row selects.

    Parameters
    ----------
    weights : array, shape (*batch, num_experts), real floating
        Weights of a gate.
    xp : array namespace, optional
        Inferred from `weights` by default.

    Returns
    -------
    array, shape (num_experts,), bool
        All True without rows. Same device as `weights`.

    Raises
    ------
    TypeError
        If `weights` is not real floating.
    ValueError
        If `weights` has no expert axis.

    Examples
    --------
    >>> import numpy as np
    >>> dead_experts(np.asarray([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])).tolist()
    [False, False, True]
    """
    xp = resolve(xp, weights=weights)
    return xp.logical_not(xp.any(_selected(weights, xp), axis=0))


def unsaturated_fraction(
    scores: ArrayT, /, *, gamma: float, xp: ModuleType | None = None
) -> ArrayT:
    """Share of the splits, or bits, that are still soft: their score is inside the band.

    Parameters
    ----------
    scores : array, any shape, real floating
        Split scores of COMET or bit scores of DSelect-k, in the unit of `gamma`.
    gamma : float
        Width of the band, in ``[1e-30, 1e30]``.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape ()
        Dimensionless, in [0, 1]: share of scores with magnitude below ``gamma / 2``;
        0 without scores. Only these get a gradient. Same dtype and device as `scores`.

    Raises
    ------
    TypeError
        If `scores` is not real floating or `gamma` not a real number.
    ValueError
        If `gamma` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> float(unsaturated_fraction(np.asarray([-2.0, 0.25, 0.5, 3.0]), gamma=1.0))
    0.25
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_gamma(gamma)
    wide = widen(scores, xp)
    inside = xp.astype(_count(xp.abs(wide) < gamma / 2, None, xp), wide.dtype)
    num_scores = math.prod(scores.shape)
    fraction: ArrayT = xp.astype(inside / max(num_scores, 1), scores.dtype, copy=False)
    return fraction


def _selected(weights: Array, xp: ModuleType) -> Array:
    """Mark non-zero weights, all batch axes in one."""
    check_floating("weights", weights, xp)
    check_axes("weights", weights, ("num_experts",))
    *batch, num_experts = weights.shape
    return xp.reshape(weights != 0, (math.prod(batch), num_experts))


def _count(mask: Array, axis: int | None, xp: ModuleType) -> Array:
    return xp.sum(xp.astype(mask, xp.int32), axis=axis)
