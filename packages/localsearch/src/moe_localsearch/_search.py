"""One entry point: choose the method that fits the objective, then confirm the gain."""

from dataclasses import replace
from typing import Literal, get_args

from numpy.typing import ArrayLike

from moe_localsearch._checks import IntArray, check_num_standard_errors, starting_permutation
from moe_localsearch._confirm import keep_if_confirmed, paired_gain
from moe_localsearch._exhaustive import exhaustive
from moe_localsearch._objective import (
    Objective,
    SupportsReplacementCosts,
    SupportsRowCosts,
    SupportsSeparable,
)
from moe_localsearch._questions import Questions, checked
from moe_localsearch._replacement import replace_and_assign
from moe_localsearch._result import (
    Confirmation,
    SearchResult,
    StopReason,
    chained,
)
from moe_localsearch._swaps import descend_by_swaps

Method = Literal["auto", "replace_and_assign", "descend_by_swaps", "exhaustive"]


def search(
    objective: Objective,
    start: ArrayLike | None = None,
    *,
    method: Method = "auto",
    confirm: SupportsRowCosts | None = None,
    num_standard_errors: float = 1.0,
) -> SearchResult:
    """Find a permutation of lower cost, and keep it only where other rows confirm the gain.

    Parameters
    ----------
    objective : Objective
        Cost to minimise.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    method : {"auto", "replace_and_assign", "descend_by_swaps", "exhaustive"}
        "auto" takes one assignment if the objective is separable, replacements and then
        swaps if it offers `replacement_costs`, and swaps otherwise.
    confirm : SupportsRowCosts, optional
        The same cost on rows that `objective` has not seen. A search over few rows fits
        their noise: with 512 rows and 4 experts a row it made the loss on other rows worse
        in 3 of 4 tries, with 2048 better in 4 of 4.
    num_standard_errors : float
        Confirmed where the mean paired gain on `confirm` is positive and above this many of
        its standard errors; finite and >= 0.

    Returns
    -------
    SearchResult
        Never worse than `start` on the search rows. Where `confirm` does not confirm the
        gain, `start` itself, with `StopReason.NOT_CONFIRMED`.

    Raises
    ------
    TypeError
        If `objective` or `confirm` does not offer what the method needs.
    ValueError
        If an argument is out of range, or `confirm` has another size than `objective`.

    Notes
    -----
    Deterministic. The standard error takes rows to be independent.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_localsearch.testing import planted_problem
    >>> cost = planted_problem(num_rows=900, size=8, num_nonzero=2, seed=0).objective
    >>> rows = np.arange(900)
    >>> result = search(cost.on_rows(rows[:600]), confirm=cost.on_rows(rows[600:]))
    >>> result.method, result.confirmation.accepted
    ('replace_and_assign + descend_by_swaps', True)
    """
    if method not in get_args(Method):
        msg = f"`method` must be one of {list(get_args(Method))}, got {method!r}."
        raise ValueError(msg)
    check_num_standard_errors(num_standard_errors)
    first = starting_permutation(start, Questions(objective).size)
    if confirm is not None:
        _check_confirm(confirm, len(first))
    result = _METHODS[method](objective, first)
    if confirm is None:
        return result
    confirmation = _confirm(confirm, first, result.permutation, num_standard_errors)
    return keep_if_confirmed(result, first, confirmation)


def _auto(objective: Objective, start: IntArray) -> SearchResult:
    """Take the strongest method that the objective has answers for."""
    if not isinstance(objective, SupportsReplacementCosts):
        return descend_by_swaps(objective, start)
    if isinstance(objective, SupportsSeparable) and objective.separable:
        return _assign_once(objective, start)
    assigned = replace_and_assign(objective, start)
    return chained(assigned, descend_by_swaps(objective, assigned.permutation))


def _assign_once(objective: SupportsReplacementCosts, start: IntArray) -> SearchResult:
    """Solve a separable objective: its one assignment is the optimum, whether or not it moved."""
    result = replace_and_assign(objective, start, max_rounds=1)
    if result.stop_reason is StopReason.NON_FINITE_COST:
        return replace(result, method="assign")
    return replace(result, method="assign", converged=True, stop_reason=StopReason.OPTIMUM)


def _replace_and_assign(objective: Objective, start: IntArray) -> SearchResult:
    if not isinstance(objective, SupportsReplacementCosts):
        msg = f"`objective` must offer `replacement_costs`, got {type(objective).__name__}."
        raise TypeError(msg)
    return replace_and_assign(objective, start)


_METHODS = {
    "auto": _auto,
    "replace_and_assign": _replace_and_assign,
    "descend_by_swaps": descend_by_swaps,
    "exhaustive": exhaustive,
}


def _check_confirm(confirm: SupportsRowCosts, size: int) -> None:
    """Refuse an objective for confirmation that has no rows or another size."""
    if not isinstance(confirm, SupportsRowCosts):
        msg = f"`confirm` must offer `row_costs`, got {type(confirm).__name__}."
        raise TypeError(msg)
    if confirm.size != size:
        msg = f"`confirm.size` must equal `objective.size`={size}, got {confirm.size}."
        raise ValueError(msg)


def _confirm(
    confirm: SupportsRowCosts, start: IntArray, found: IntArray, num_standard_errors: float
) -> Confirmation:
    """Compare the two permutations row by row on the confirmation rows."""
    name = "confirm.row_costs(...)"
    answer = confirm.row_costs(start)
    num_rows = len(answer)
    before = checked(name, answer, [("T", num_rows)])
    after = checked(name, confirm.row_costs(found), [("T", num_rows)])
    return paired_gain(before, after, num_standard_errors=num_standard_errors)
