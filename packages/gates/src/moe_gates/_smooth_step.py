"""A step from 0 to 1 that is smooth inside a band and constant outside."""

from types import ModuleType

from moe_gates._array import Array, ArrayT, widen
from moe_gates._checks import check_floating, check_gamma, resolve


def smooth_step(t: ArrayT, /, *, gamma: float, xp: ModuleType | None = None) -> ArrayT:
    """Cubic step: 0 below ``-gamma / 2``, 1 above ``gamma / 2``, smooth between.

    Parameters
    ----------
    t : array, any shape, real floating
        Scores, in the unit of `gamma`.
    gamma : float
        Width of the band, in ``[1e-30, 1e30]``.
    xp : array namespace, optional
        Inferred from `t` by default.

    Returns
    -------
    array, shape of `t`
        Dimensionless, in [0, 1], non-decreasing in `t`, continuously differentiable.
        Exactly 0 or 1, with a gradient of exactly 0, outside the band.
        Same dtype and device as `t`.

    Raises
    ------
    TypeError
        If `t` is not real floating or `gamma` is not a real number.
    ValueError
        If `gamma` is out of range.

    References
    ----------
    Hazimeh et al., ICML 2020, arXiv:2002.07772.

    Examples
    --------
    >>> import numpy as np
    >>> smooth_step(np.asarray([-1.0, -0.25, 0.0, 0.25, 1.0]), gamma=1.0).tolist()
    [0.0, 0.15625, 0.5, 0.84375, 1.0]
    """
    xp = resolve(xp, t=t)
    check_floating("t", t, xp)
    check_gamma(gamma)
    step, _ = smooth_step_pair(widen(t, xp), gamma, xp)
    stepped: ArrayT = xp.astype(step, t.dtype, copy=False)
    return stepped


def smooth_step_pair(t: Array, gamma: float, xp: ModuleType) -> tuple[Array, Array]:
    """Return the step S and 1 - S, both exact to rounding near 0."""
    # S = u^2 (1 + 2r) = u (u + 2ur) with r = 1 - u has no difference but r: it stays in
    # [0, 1] and is exact to rounding near 0, where the expanded cubic loses every digit.
    # Likewise 1 - S = r (r + 2ur).
    up = xp.clip(t / gamma + 0.5, 0.0, 1.0)
    down = 1 - up
    half_cross = up * down
    cross = half_cross + half_cross
    return up * (up + cross), down * (down + cross)
