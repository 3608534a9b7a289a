"""Ask an objective: check the shape of each answer, count the costs that it held."""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from moe_localsearch._answers import checked, row_costs_of
from moe_localsearch._changes import Changes, ChangeSums, difference, joined, without_rows
from moe_localsearch._checks import (
    FloatArray,
    IntArray,
    check_callable,
    check_count,
    check_standard_errors,
)
from moe_localsearch._moves import other_entries, replacements, swaps
from moe_localsearch._objective import (
    Objective,
    RelaxedCost,
    SupportsChanges,
    SupportsRelaxation,
    SupportsReplacementCosts,
    SupportsRowCosts,
    SupportsSwapCosts,
)
from moe_localsearch._progress import ProgressCallback, SearchProgress, SearchStopped

GIVE_UP_AT = 4.0
"""Standard errors above the current cost at which a candidate is not evaluated further. Fewer
than one in 10,000 candidates that are as good as the current permutation look so bad."""


class Questions:
    """The questions that a search asks of one objective, and how many costs it was told."""

    def __init__(
        self,
        objective: Objective,
        *,
        move_standard_errors: float = 0.0,
        progress: ProgressCallback | None = None,
    ) -> None:
        if not isinstance(objective, Objective):
            msg = f"`objective` must be callable and have a `size`, got {type(objective).__name__}."
            raise TypeError(msg)
        self.objective = objective
        self.size = check_count("objective.size", objective.size, minimum=1)
        check_standard_errors("move_standard_errors", move_standard_errors)
        has_rows = isinstance(objective, SupportsRowCosts)
        if move_standard_errors > 0 and not has_rows:
            msg = (
                "`objective` must offer `row_costs` for `move_standard_errors` > 0, "
                f"got {type(objective).__name__}."
            )
            raise TypeError(msg)
        self.move_standard_errors = move_standard_errors
        if progress is not None:
            check_callable("progress", progress)
        self._progress = progress
        self._began = time.perf_counter()
        self.num_evaluations = 0
        # What the progress callback is told; the methods keep them up to date.
        self.method = ""
        self.best_cost = np.nan

    def seconds(self) -> float:
        """Return the wall time since the search began."""
        return time.perf_counter() - self._began

    def costs(self, permutations: IntArray) -> FloatArray:
        """Return the cost of each row of `permutations`."""
        self._about_to_ask()
        self.num_evaluations += len(permutations)
        answer = self.objective(permutations.copy())  # which may work in place
        return checked("objective(permutations)", answer, [("B", len(permutations))])

    def cost(self, permutation: IntArray) -> float:
        """Return the cost of one permutation."""
        return float(self.costs(permutation[None])[0])

    def cost_quietly(self, permutation: IntArray) -> float:
        """Return the cost of one permutation where a search begins or ends: no time to stop it."""
        self.num_evaluations += 1
        answer = self.objective(permutation[None].copy())
        return float(checked("objective(permutations)", answer, [("B", 1)])[0])

    def row_costs(self, permutation: IntArray) -> FloatArray | None:
        """Return the cost of each row, or None where the objective has none."""
        if not isinstance(self.objective, SupportsRowCosts):
            return None
        return row_costs_of("objective", self.objective, permutation)

    def replacement_changes(self, permutation: IntArray, cost: float) -> Changes:
        """Return the changes of the single replacements, in the order of `replacements`."""
        if isinstance(self.objective, SupportsChanges):
            # All are exact: an assignment weighs each against each.
            parts = replacements(permutation)
            return joined(self.changes(permutation, part, give_up_at=np.inf) for part in parts)
        if not isinstance(self.objective, SupportsReplacementCosts):
            msg = (
                "`objective` must offer `replacement_costs` or `changes` for this method, "
                f"got {type(self.objective).__name__}; `descend_by_swaps` needs none."
            )
            raise TypeError(msg)
        n = self.size
        self._about_to_ask()
        self.num_evaluations += n * (n - 1)
        answer = self.objective.replacement_costs(permutation.copy())
        costs = checked("objective.replacement_costs(...)", answer, [("n", n), ("n", n)])
        return without_rows(difference(costs[other_entries(permutation)], cost))

    def swap_changes(self, permutation: IntArray, cost: float) -> Changes:
        """Return the changes of all swaps, in the order of ``np.triu_indices(n, 1)``."""
        knows_changes = isinstance(self.objective, SupportsChanges) or self.move_standard_errors
        if knows_changes or not isinstance(self.objective, SupportsSwapCosts):
            return self.nearby_changes(permutation, cost, swaps(permutation))
        n = self.size
        self._about_to_ask()
        self.num_evaluations += n * (n - 1) // 2
        answer = self.objective.swap_costs(permutation.copy())
        costs = checked("objective.swap_costs(...)", answer, [("n", n), ("n", n)])
        return without_rows(difference(costs[np.triu_indices(n, 1)], cost))

    def nearby_changes(
        self, permutation: IntArray, cost: float, parts: Iterable[IntArray]
    ) -> Changes:
        """Return the changes of permutations, in parts (B, n), that differ in a few positions."""
        # From an infinite cost there are no paired differences.
        if isinstance(self.objective, SupportsChanges) and cost < np.inf:
            return joined(self.changes(permutation, part, give_up_at=GIVE_UP_AT) for part in parts)
        if self.move_standard_errors and cost < np.inf:
            return joined(self._changes_of_rows(permutation, part) for part in parts)
        return joined(without_rows(difference(self.costs(part), cost)) for part in parts)

    def _changes_of_rows(self, permutation: IntArray, candidates: IntArray) -> Changes:
        """Return the changes of an objective that knows no more than its row costs."""
        self._about_to_ask()
        self.num_evaluations += len(candidates)
        before = self.row_costs(permutation)
        assert before is not None, "the constructor asks for row_costs"
        sums = ChangeSums(len(candidates))
        sums.num_rows += len(before)
        for number, candidate in enumerate(candidates):
            after = self.row_costs(candidate)
            assert after is not None
            with np.errstate(invalid="ignore"):
                sums.add(np.full(len(before), number), after - before)
        mean, standard_error = sums.changes()
        return Changes(mean, standard_error, np.ones(len(candidates), dtype=bool))

    def changes(self, permutation: IntArray, candidates: IntArray, *, give_up_at: float) -> Changes:
        """Ask an objective that offers `changes`."""
        assert isinstance(self.objective, SupportsChanges)
        self._about_to_ask()
        self.num_evaluations += len(candidates)
        asked = permutation.copy(), candidates.copy()
        answer = self.objective.changes(*asked, give_up_at=give_up_at)
        name, axes = "objective.changes(...)", [("B", len(candidates))]
        return Changes(
            checked(f"{name}.mean", answer.mean, axes),
            checked(f"{name}.standard_error", answer.standard_error, axes),
            np.asarray(answer.exact, dtype=bool),
        )

    def relaxed_cost(self, matrix: FloatArray) -> RelaxedCost:
        """Return the relaxed cost and its gradient."""
        if not (isinstance(self.objective, SupportsRelaxation) and self.objective.differentiable):
            msg = (
                "`objective` must offer a differentiable `relaxed_cost` for this method, "
                f"got {type(self.objective).__name__}; see `SupportsRelaxation`."
            )
            raise TypeError(msg)
        self._about_to_ask()
        self.num_evaluations += 1
        answer: Any = self.objective.relaxed_cost(matrix.copy())
        if not isinstance(answer, tuple) or len(answer) != 2:
            msg = f"`objective.relaxed_cost(...)` must be a RelaxedCost, got {answer!r}."
            raise TypeError(msg)
        cost, gradient = answer
        axes = [("n", self.size), ("n", self.size)]
        return RelaxedCost(
            float(cost), checked("objective.relaxed_cost(...).gradient", gradient, axes)
        )

    def _about_to_ask(self) -> None:
        """Tell the progress callback where the search stands; it may stop the search."""
        if self._progress is None:
            return
        now = SearchProgress(self.method, self.best_cost, self.num_evaluations, self.seconds())
        try:
            self._progress(now)
        except StopIteration:
            raise SearchStopped from None
