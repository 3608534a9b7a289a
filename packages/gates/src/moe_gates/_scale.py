"""The unit of scores: gamma in standard deviations instead of a grid over five decades."""

import math
from types import ModuleType

from moe_gates._array import Array, ArrayT, device_of, smallest_normal, widen
from moe_gates._checks import check_axes, check_broadcasts, check_floating, resolve

# Of the dtype: a deviation below this share of the largest score is what the rounding of
# the mean makes of a constant.
ROUNDINGS_OF_A_CONSTANT = 16


def score_scale(scores: ArrayT, /, *, xp: ModuleType | None = None) -> ArrayT:
    """Return the standard deviation over the rows of each split score, or bit score.

    Parameters
    ----------
    scores : array, shape (*batch, num_slots, num_splits), real floating
        Split scores of COMET, or bit scores of DSelect-k, of a batch.
    xp : array namespace, optional
        Inferred from `scores` by default.

    Returns
    -------
    array, shape (num_slots, num_splits)
        In the unit of the scores, > 0 and finite. A score that does not vary has the
        scale 1; so has every score with no rows or one. Same dtype and device as `scores`.

    Raises
    ------
    TypeError
        If `scores` is not real floating.
    ValueError
        If `scores` has fewer than two axes.

    Notes
    -----
    A row's answer must not depend on the rows beside it, so that gates take the scale as an
    argument, and the training loop carries it like the statistics of a batch normalisation::

        batch_scale = score_scale(detach(split_scores))
        scale = batch_scale if first_step else 0.99 * scale + 0.01 * batch_scale
        gate = comet_gate(split_scores, leaf_scores, gamma=1.0, split_scale=scale)

    Keep `scale` with the parameters, and do not change it after training. Multiplying the
    scores and the scale by one number leaves the gate as it is, so that `gamma` needs no
    search over orders of magnitude. Hard routes do not depend on the scale.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.asarray([[[128.0, 3.0]], [[384.0, 3.0]]])  # two rows, one tree, two splits
    >>> score_scale(scores).tolist()
    [[128.0, 1.0]]
    """
    xp = resolve(xp, scores=scores)
    check_floating("scores", scores, xp)
    check_axes("scores", scores, ("num_slots", "num_splits"))
    *batch, num_slots, num_splits = scores.shape
    wide = xp.reshape(widen(scores, xp), (math.prod(batch), num_slots, num_splits))
    # In units of the largest score, so that no square overflows or vanishes.
    largest = _largest(wide, xp)
    unit = xp.where(largest > 0, largest, 1.0)
    deviation = unit * _relative_deviation(wide / unit, xp)
    varies = deviation > 0
    # No less than what the dtype of the scores holds: half precision would round to 0.
    smallest = smallest_normal(scores.dtype, xp)
    scale: ArrayT = xp.astype(
        xp.where(varies, xp.clip(deviation, smallest), 1.0), scores.dtype, copy=False
    )
    return scale


def _largest(scores: Array, xp: ModuleType) -> Array:
    """Largest magnitude over the rows; 0 without rows."""
    none = xp.zeros((1, *scores.shape[1:]), dtype=scores.dtype, device=device_of(scores))
    return xp.max(xp.concat([none, xp.abs(scores)], axis=0), axis=0)


def _relative_deviation(scores: Array, xp: ModuleType) -> Array:
    """Return the standard deviation of scores in [-1, 1]; 0 where it is rounding of a constant."""
    num_rows = max(scores.shape[0], 1)
    # From the first row on: sums row by row, as NumPy's, drift away from a constant.
    scores = scores - scores[: min(scores.shape[0], 1), ...]
    mean = xp.sum(scores / num_rows, axis=0)
    variance = xp.sum((scores - mean) ** 2 / num_rows, axis=0)
    varies = variance > (ROUNDINGS_OF_A_CONSTANT * float(xp.finfo(scores.dtype).eps)) ** 2
    # The root of 1 where nothing varies: that of 0 has an infinite gradient.
    return xp.where(varies, xp.sqrt(xp.where(varies, variance, 1.0)), 0.0)


def in_units(name: str, scale: Array | None, scores: Array, xp: ModuleType) -> Array:
    """Return the scores, in float32 at least, divided by the scale if there is one."""
    wide = widen(scores, xp)
    if scale is None:
        return wide
    resolve(xp, **{name: scale})
    check_floating(name, scale, xp)
    check_broadcasts(name, scale, ("num_slots", "num_splits"), tuple(scores.shape[-2:]))
    return wide / widen(scale, xp)
