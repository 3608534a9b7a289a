"""Keep what a search found only if its gain shows on rows that the search has not seen."""

from dataclasses import replace

import numpy as np

from moe_localsearch._checks import FloatArray, IntArray
from moe_localsearch._result import Confirmation, SearchResult, StopReason


def paired_gain(
    before: FloatArray, after: FloatArray, *, num_standard_errors: float
) -> Confirmation:
    """Compare the costs of the same rows, shape (T,), before and after a search."""
    num_rows = len(before)
    if num_rows == 0:
        return Confirmation(gain=0.0, standard_error=np.inf, accepted=False)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, and is not accepted
        gains = before - after
        gain = float(gains.mean())
        spread = float(gains.std(ddof=1)) if num_rows > 1 else np.inf
    standard_error = spread / num_rows**0.5
    accepted = gain > num_standard_errors * standard_error
    return Confirmation(gain, standard_error, accepted)


def keep_if_confirmed(
    result: SearchResult, start: IntArray, confirmation: Confirmation
) -> SearchResult:
    """Return `result`, or the start in its place where the gain was not confirmed."""
    if confirmation.accepted or np.array_equal(result.permutation, start):
        return replace(result, confirmation=confirmation)
    return replace(
        result,
        permutation=start,
        cost_after=result.cost_before,
        stop_reason=StopReason.NOT_CONFIRMED,
        confirmation=confirmation,
    )
