"""One entry point: choose the methods that fit the objective, then confirm the gain."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

from numpy.typing import ArrayLike

from moe_localsearch._anneal import ANNEAL, anneal_outcome
from moe_localsearch._answers import row_costs_of
from moe_localsearch._checks import (
    IntArray,
    check_count,
    check_seed,
    check_standard_errors,
    starting_permutation,
)
from moe_localsearch._confirm import confirmed
from moe_localsearch._exhaustive import EXHAUSTIVE, check_exhaustive, exhaustive_outcome
from moe_localsearch._frank_wolfe import FRANK_WOLFE, frank_wolfe_outcome
from moe_localsearch._objective import (
    Objective,
    SupportsChanges,
    SupportsRelaxation,
    SupportsReplacementCosts,
    SupportsRowCosts,
    SupportsSeparable,
)
from moe_localsearch._progress import ProgressCallback
from moe_localsearch._questions import Questions
from moe_localsearch._replacement import ASSIGN, REPLACEMENT, assign_outcome, replacement_outcome
from moe_localsearch._restart import RESTARTS, restart_outcome
from moe_localsearch._result import SearchResult
from moe_localsearch._run import Phase, gain_standard_error, run
from moe_localsearch._swaps import SWAPS, swap_outcome

Method = Literal[
    "auto", "replace_and_assign", "descend_by_swaps", "frank_wolfe", "anneal", "exhaustive"
]


def search(
    objective: Objective,
    start: ArrayLike | None = None,
    *,
    method: Method = "auto",
    move_standard_errors: float = 0.0,
    num_restarts: int = 0,
    seed: int = 0,
    confirm: SupportsRowCosts | None = None,
    num_standard_errors: float = 1.0,
    progress: ProgressCallback | None = None,
) -> SearchResult:
    """Find a permutation of lower cost, and keep it only where other rows confirm the gain.

    Parameters
    ----------
    objective : Objective
        Cost to minimise.
    start : array, shape (n,), integer, optional
        Where to begin; the identity by default.
    method : {"auto", "replace_and_assign", "descend_by_swaps", "frank_wolfe", "anneal", \
"exhaustive"}
        "auto" takes one assignment if the objective is separable; otherwise Frank-Wolfe if it is
        differentiable, or replacements if it knows them, and from there swaps.
    move_standard_errors : float
        A move is taken where its paired gain on the search rows is positive and above this
        many of its standard errors; finite and >= 0. Above 0 the objective must offer
        `row_costs`. It protects a start that is good already, and stops far from a good one.
    num_restarts : int
        How often to shuffle a part of the best permutation, and descend again by swaps.
    seed : int
        For "anneal" and restarts; equal seeds give equal results.
    confirm : SupportsRowCosts, optional
        The same cost on rows that `objective` has not seen. A search over few rows fits
        their noise: with 512 rows and 4 experts a row it made the loss on other rows worse
        in 3 of 4 tries, with 2048 better in 4 of 4.
    num_standard_errors : float
        Confirmed where the mean paired gain on `confirm` is positive and above this many of
        its standard errors; finite and >= 0.
    progress : callable, optional
        Called with a `SearchProgress` before each question to the objective. It may raise
        StopIteration: the best permutation so far is then confirmed and returned.

    Returns
    -------
    SearchResult
        Never worse than `start` on the search rows. What the search has moved falls into
        cycles of positions; those whose gain `confirm` does not confirm are undone, one after
        the other (`StopReason.PARTLY_CONFIRMED`), unless none is confirmed alone, but all are
        together. Where the rest is not confirmed either, it is `start` itself
        (`StopReason.NOT_CONFIRMED`).

    Raises
    ------
    TypeError
        If `objective` or `confirm` does not offer what the method needs.
    ValueError
        If an argument is out of range, or `confirm` has another size than `objective`.

    Notes
    -----
    Deterministic. The standard errors take rows to be independent.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_localsearch.testing import planted_problem
    >>> cost = planted_problem(num_rows=900, size=8, num_nonzero=2, seed=0).objective
    >>> rows = np.arange(900)
    >>> result = search(cost.on_rows(rows[:600]), confirm=cost.on_rows(rows[600:]))
    >>> result.method, result.confirmation.accepted
    ('frank_wolfe + descend_by_swaps', True)
    """
    check_method(method)
    check_standard_errors("num_standard_errors", num_standard_errors)
    num_restarts = check_count("num_restarts", num_restarts, minimum=0)
    check_seed(seed)
    questions = Questions(objective, move_standard_errors=move_standard_errors, progress=progress)
    first = starting_permutation(start, questions.size)
    if confirm is not None:
        _check_confirm(confirm, questions.size)
    phases = _PHASES[method](objective, seed)
    if num_restarts:
        if phases[-1][0] != SWAPS:  # what is shuffled is one that swaps do not improve
            phases = [*phases, (SWAPS, swap_outcome)]
        restarts = partial(restart_outcome, num_restarts=num_restarts, seed=seed)
        phases = [*phases, (RESTARTS, restarts)]
    result = run(questions, first, phases)
    if confirm is None:
        return result

    def recost(kept: IntArray) -> tuple[float, float | None]:
        return questions.cost_quietly(kept), gain_standard_error(questions, first, kept)

    result = confirmed(
        result,
        first,
        partial(row_costs_of, "confirm", confirm),
        recost,
        num_standard_errors=num_standard_errors,
    )
    return replace(result, seconds=questions.seconds())


def _auto(objective: Objective, _seed: int) -> list[Phase]:
    """Choose the strongest methods that the objective has answers for."""
    knows_replacements = isinstance(objective, SupportsReplacementCosts | SupportsChanges)
    if knows_replacements and isinstance(objective, SupportsSeparable) and objective.separable:
        return [(ASSIGN, assign_outcome)]
    swaps: Phase = (SWAPS, swap_outcome)
    if isinstance(objective, SupportsRelaxation) and objective.differentiable:
        return [(FRANK_WOLFE, frank_wolfe_outcome), swaps]
    return [(REPLACEMENT, replacement_outcome), swaps] if knows_replacements else [swaps]


def _exhaustive(objective: Objective, _seed: int) -> list[Phase]:
    check_exhaustive(objective.size)
    return [(EXHAUSTIVE, exhaustive_outcome)]


_PHASES: dict[str, Callable[[Objective, int], list[Phase]]] = {
    "auto": _auto,
    "replace_and_assign": lambda _objective, _seed: [(REPLACEMENT, replacement_outcome)],
    "descend_by_swaps": lambda _objective, _seed: [(SWAPS, swap_outcome)],
    "frank_wolfe": lambda _objective, _seed: [(FRANK_WOLFE, frank_wolfe_outcome)],
    "anneal": lambda _objective, seed: [
        (ANNEAL, partial(anneal_outcome, seed=seed)),
        (SWAPS, swap_outcome),
    ],
    "exhaustive": _exhaustive,
}


def check_method(method: str) -> None:
    """Refuse a method that `search` does not know."""
    if method not in get_args(Method):
        msg = f"`method` must be one of {list(get_args(Method))}, got {method!r}."
        raise ValueError(msg)


def _check_confirm(confirm: SupportsRowCosts, size: int) -> None:
    """Refuse an objective for confirmation that has no rows or another size."""
    if not isinstance(confirm, SupportsRowCosts):
        msg = f"`confirm` must offer `row_costs`, got {type(confirm).__name__}."
        raise TypeError(msg)
    if confirm.size != size:
        msg = f"`confirm.size` must equal `objective.size`={size}, got {confirm.size}."
        raise ValueError(msg)
