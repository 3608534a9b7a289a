"""Schedules of gamma and of penalty weights: numbers that change with the step."""

import math

from moe_gates._checks import check_integer, check_real


def linear_schedule(
    step: int, /, *, start: float, end: float, num_steps: int, num_hold_steps: int = 0
) -> float:
    """Go from `start` to `end` by the same difference in each step.

    Parameters
    ----------
    step : int
        Steps done, at least 0.
    start : float
        Value at step 0, and until `num_hold_steps`.
    end : float
        Value from step ``num_hold_steps + num_steps`` on.
    num_steps : int
        Steps from `start` to `end`, at least 1.
    num_hold_steps : int, default 0
        Steps at `start` before.

    Returns
    -------
    float
        In the unit of `start`. Exactly `start` and `end` at both ends.

    Raises
    ------
    TypeError
        If a number of steps is not an integer, or `start` or `end` not a real number.
    ValueError
        If a number is out of range or not finite.

    Examples
    --------
    >>> [linear_schedule(step, start=0.0, end=1.0, num_steps=4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    share = _share_done(step, num_steps, num_hold_steps)
    check_real("start", start)
    check_real("end", end)
    return _between(start, end, share)


def cosine_schedule(
    step: int, /, *, start: float, end: float, num_steps: int, num_hold_steps: int = 0
) -> float:
    """Go from `start` to `end` along half a cosine: slowly at both ends.

    Parameters
    ----------
    step : int
        Steps done, at least 0.
    start : float
        Value at step 0, and until `num_hold_steps`.
    end : float
        Value from step ``num_hold_steps + num_steps`` on.
    num_steps : int
        Steps from `start` to `end`, at least 1.
    num_hold_steps : int, default 0
        Steps at `start` before.

    Returns
    -------
    float
        In the unit of `start`. Exactly `start` and `end` at both ends.

    Raises
    ------
    TypeError
        If a number of steps is not an integer, or `start` or `end` not a real number.
    ValueError
        If a number is out of range or not finite.

    References
    ----------
    Loshchilov and Hutter, "SGDR", arXiv:1608.03983, eq. (5), without restarts.

    Examples
    --------
    >>> [round(cosine_schedule(step, start=1.0, end=0.0, num_steps=4), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    share = _share_done(step, num_steps, num_hold_steps)
    check_real("start", start)
    check_real("end", end)
    return _between(start, end, (1 - math.cos(math.pi * share)) / 2)


def exponential_schedule(
    step: int, /, *, start: float, end: float, num_steps: int, num_hold_steps: int = 0
) -> float:
    """Go from `start` to `end` by the same factor in each step.

    Suits gamma, whose sensible values span decades.

    Parameters
    ----------
    step : int
        Steps done, at least 0.
    start : float
        Value at step 0, and until `num_hold_steps`; > 0.
    end : float
        Value from step ``num_hold_steps + num_steps`` on; > 0.
    num_steps : int
        Steps from `start` to `end`, at least 1.
    num_hold_steps : int, default 0
        Steps at `start` before.

    Returns
    -------
    float
        In the unit of `start`, > 0. Exactly `start` and `end` at both ends.

    Raises
    ------
    TypeError
        If a number of steps is not an integer, or `start` or `end` not a real number.
    ValueError
        If a number is out of range or not finite.

    Examples
    --------
    >>> [exponential_schedule(step, start=16.0, end=1.0, num_steps=4) for step in range(6)]
    [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    """
    share = _share_done(step, num_steps, num_hold_steps)
    check_real("start", start, positive=True)
    check_real("end", end, positive=True)
    # Not start (end / start)^share, which overflows for values that are far apart.
    return math.pow(start, 1 - share) * math.pow(end, share)


def _share_done(step: int, num_steps: int, num_hold_steps: int) -> float:
    """Return how much of the way is done, from 0 to 1."""
    check_integer("step", step, 0)
    check_integer("num_steps", num_steps, 1)
    check_integer("num_hold_steps", num_hold_steps, 0)
    # Python's own integers: NumPy's wrap around.
    return min(max((int(step) - int(num_hold_steps)) / int(num_steps), 0.0), 1.0)


def _between(start: float, end: float, share: float) -> float:
    return (1 - share) * float(start) + share * float(end)
