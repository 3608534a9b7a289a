"""Temperatures and iterations of Sinkhorn over the steps of a training run."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from moe_localsearch._checks import check_count, check_number

LAST_TEMPERATURE = 0.03
"""Cold enough that rounding recovered all of the gap of planted problems."""
ITERATIONS_TIMES_TEMPERATURE = 10
"""Leaves the marginal errors in the table of `convergent_schedule`."""
MIN_ITERATIONS = 20


class RelaxationSettings(NamedTuple):
    """What `sinkhorn` uses in one step: a dimensionless temperature and an iteration count."""

    temperature: float
    num_iterations: int


Schedule = Callable[[int, int], RelaxationSettings]
"""``schedule(step, num_steps)``, from step 0 to `num_steps`."""


def checked_settings(settings: Any) -> RelaxationSettings:  # noqa: ANN401  not checked yet
    """Return what a schedule gave, or `sinkhorn` was given, if Sinkhorn can use it."""
    if not isinstance(settings, tuple) or len(settings) != 2:
        msg = f"`schedule` must return RelaxationSettings, got {settings!r}."
        raise TypeError(msg)
    temperature, num_iterations = settings
    num_iterations = check_count("num_iterations", num_iterations, minimum=1)
    check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        msg = f"`temperature` must be finite and > 0, got {temperature}."
        raise ValueError(msg)
    # Python's own number: NumPy's would widen float32 weights.
    return RelaxationSettings(float(temperature), num_iterations)


def paper_schedule(step: int, num_steps: int) -> RelaxationSettings:
    """Schedule of the paper: temperature 1e-3 to 1e-7, 20 to 150 iterations.

    Parameters
    ----------
    step : int
        Step of the relaxation, in [0, num_steps].
    num_steps : int
        Steps in which the permutation is learned, >= 1.

    Returns
    -------
    RelaxationSettings
        ``10 ** (-3 - 4 step / num_steps)`` and ``floor(20 + 130 step / num_steps)``.

    Raises
    ------
    ValueError
        If `step` or `num_steps` is out of range.

    Notes
    -----
    Kept for reproduction. Sinkhorn does not converge with it: for 16 experts the row sums
    are off by 0.18 at the start and 1.4 at the end, and gradients vanish.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement.

    Examples
    --------
    >>> paper_schedule(50, 100)
    RelaxationSettings(temperature=1e-05, num_iterations=85)
    """
    _check_step(step, num_steps)
    return RelaxationSettings(
        temperature=10.0 ** (-3 - 4 * step / num_steps),
        num_iterations=20 + 130 * step // num_steps,
    )


def convergent_schedule(step: int, num_steps: int) -> RelaxationSettings:
    """Schedule with which Sinkhorn converges: temperature 1 to 0.03, 20 to 334 iterations.

    Parameters
    ----------
    step : int
        Step of the relaxation, in [0, num_steps].
    num_steps : int
        Steps in which the permutation is learned, >= 1.

    Returns
    -------
    RelaxationSettings
        ``0.03 ** (step / num_steps)``, and 10 / temperature iterations, at least 20.

    Raises
    ------
    ValueError
        If `step` or `num_steps` is out of range.

    Notes
    -----
    Marginal error of `sinkhorn` in float64, median and largest of 200 matrices with standard
    normal entries; with entries from U(-0.05, 0.05) it is below 1e-14 in all of them.

    ====  ==============  ==============  ==============
    n     step 0          half way        last step
    ====  ==============  ==============  ==============
    4     2e-13, 4e-6     1e-3, 2e-2      2e-3, 5e-3
    16    7e-16, 7e-10    2e-3, 2e-2      4e-3, 1.1e-2
    64    4e-16, 3e-15    5e-3, 1.9e-2    6e-3, 1.1e-2
    ====  ==============  ==============  ==============

    Examples
    --------
    >>> convergent_schedule(100, 100)
    RelaxationSettings(temperature=0.03, num_iterations=334)
    """
    _check_step(step, num_steps)
    temperature = LAST_TEMPERATURE ** (step / num_steps)
    enough = math.ceil(ITERATIONS_TIMES_TEMPERATURE / temperature)
    return RelaxationSettings(temperature, num_iterations=max(MIN_ITERATIONS, enough))


def _check_step(step: int, num_steps: int) -> None:
    check_count("num_steps", num_steps, minimum=1)
    if not 0 <= check_count("step", step, minimum=0) <= num_steps:
        msg = f"`step` must be in [0, num_steps={num_steps}], got {step}."
        raise ValueError(msg)
