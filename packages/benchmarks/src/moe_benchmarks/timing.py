"""Compare the speed of variants of one computation on a machine that others use too."""

import statistics
import time
from collections.abc import Callable, Mapping

# Enough interleaved rounds for a median; quick calls get more of them.
SECONDS = 1.0
MIN_ROUNDS, MAX_ROUNDS = 7, 200


def interleaved_medians(
    variants: Mapping[str, Callable[[], object]],
    *,
    seconds: float = SECONDS,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Time variants in turns, so that noise hits all of them alike.

    Parameters
    ----------
    variants
        Calls without arguments, by name. Each runs once before the timing begins.
    seconds
        Time after which no further round begins, once there are 7 rounds.
    wait
        Waits for a device that answers before it is done; part of each call's time.

    Returns
    -------
    dict of str to float
        Median milliseconds of a call.

    Raises
    ------
    ValueError
        If there is no variant.
    """
    if not variants:
        msg = "`variants` must hold at least one call, got none."
        raise ValueError(msg)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    wait()
    begin = time.perf_counter()
    for done in range(1, MAX_ROUNDS + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
        if done >= MIN_ROUNDS and time.perf_counter() - begin > seconds:
            break
    return {name: statistics.median(values) for name, values in times.items()}
