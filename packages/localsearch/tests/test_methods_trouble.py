"""What no method can make sense of: costs that are not finite, and wrong arguments."""

from collections.abc import Callable
from itertools import permutations
from typing import Any, cast

import numpy as np
import pytest

from moe_localsearch import (
    Method,
    RelabelingObjective,
    StopReason,
    descend_by_swaps,
    replace_and_assign,
    search,
)

METHODS = ["auto", "replace_and_assign", "descend_by_swaps", "anneal", "exhaustive"]


class TestNumericalTrouble:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_nan_start_is_returned(
        self, method: Method, fixed_answers: Callable[..., Any]
    ) -> None:
        result = search(fixed_answers(3, cost=np.nan), [1, 2, 0], method=method)
        np.testing.assert_array_equal(result.permutation, [1, 2, 0])
        assert np.isnan(result.cost_before)
        assert np.isnan(result.cost_after)
        assert result.stop_reason is StopReason.NON_FINITE_COST
        assert not result.converged

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_replacements_stop_and_swaps_still_run(
        self, bad: float, quadratic_assignment: Callable[..., Any]
    ) -> None:
        quadratic = quadratic_assignment(5, seed=1)

        class Broken:
            size = 5

            def __call__(self, batch: Any) -> Any:
                return quadratic(batch)

            def replacement_costs(self, _permutation: Any) -> Any:
                return np.full((5, 5), bad)

        alone = replace_and_assign(Broken())
        assert alone.stop_reason is StopReason.NON_FINITE_COST
        assert alone.cost_after == alone.cost_before
        both = search(Broken())
        assert both.cost_after == descend_by_swaps(quadratic).cost_after < both.cost_before
        assert both.stop_reason is StopReason.NON_FINITE_COST
        assert both.method == "replace_and_assign + descend_by_swaps"

    def test_moves_that_give_nan_together_are_not_taken(
        self, table_objective: Callable[..., Any]
    ) -> None:
        costs = dict.fromkeys(permutations(range(4)), 5.0)
        costs |= {(0, 1, 2, 3): 1.0, (1, 0, 2, 3): 0.5, (0, 1, 3, 2): 0.6, (1, 0, 3, 2): np.nan}
        result = descend_by_swaps(table_objective(4, costs.values()))
        np.testing.assert_array_equal(result.permutation, [1, 0, 2, 3])
        assert result.stop_reason is StopReason.NON_FINITE_COST

        class Promises:
            size = 2

            def __call__(self, batch: Any) -> Any:
                return np.where(batch[:, 0] == 0, 1.0, np.nan)

            def replacement_costs(self, _permutation: Any) -> Any:
                return -np.eye(2)[::-1]

        result = replace_and_assign(Promises())
        np.testing.assert_array_equal(result.permutation, [0, 1])
        assert result.stop_reason is StopReason.NON_FINITE_COST

    def test_a_diverged_expert_costs_nan_only_where_it_is_used(self) -> None:
        outputs = np.zeros((3, 3, 1))
        outputs[:, 2] = np.nan
        weights = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
        objective = RelabelingObjective(weights, outputs, lambda mixed, _rows: mixed[:, 0])
        costs = objective.replacement_costs(np.arange(3))
        np.testing.assert_array_equal(np.isnan(costs), [[0, 0, 1], [0, 0, 1], [0, 0, 0]])
        result = search(objective)
        np.testing.assert_array_equal(result.permutation, [0, 1, 2])
        assert result.stop_reason is StopReason.NON_FINITE_COST

    def test_an_infinite_start_may_be_left(self, table_objective: Callable[..., Any]) -> None:
        result = descend_by_swaps(table_objective(2, [np.inf, 1.0]))
        np.testing.assert_array_equal(result.permutation, [1, 0])

    def test_replacements_leave_an_infinite_start(self) -> None:
        class Blocked:
            size = 2

            def __call__(self, permutations: Any) -> Any:
                return np.where(permutations[:, 0] == 0, np.inf, 1.0)

            def replacement_costs(self, permutation: Any) -> Any:
                return np.ones((2, 2)) if permutation[0] else np.array([[np.inf, 1.0], [1.0, 1.0]])

        for found in (search(Blocked()), replace_and_assign(Blocked())):
            np.testing.assert_array_equal(found.permutation, [1, 0])

    def test_swaps_leave_an_infinite_start_of_paired_rows(self) -> None:
        def loss(mixed: Any, _rows: Any) -> Any:
            with np.errstate(divide="ignore"):
                return -np.log(mixed[:, 0])

        outputs = np.broadcast_to(np.array([0.0, 1.0, 0.5])[:, None], (2, 3, 1))
        objective = RelabelingObjective(np.eye(3)[[0, 1]], outputs, loss)
        assert descend_by_swaps(objective).cost_after < np.inf


class TestBadArguments:
    @pytest.mark.parametrize(
        ("start", "error", "message"),
        [
            ([0, 1, 1], ValueError, r"`start` .* \(n=3\), got 1 at positions \[1, 2\] and no 2"),
            ([0, 1, 3], ValueError, r"`start` .* \(n=3\), got 3 at \[2\]"),
            ([0, -1, 2], ValueError, r"`start` .* got -1 at \[1\]"),
            ([0, 1], ValueError, r"`start` must have shape \(\.\.\., n=3\), got \(2,\)"),
            ([[0, 1, 2]], ValueError, r"`start` must have shape \(n=3\), got \(1, 3\)"),
            ([0.0, 1.0, 2.0], TypeError, r"`start` must hold integers, got dtype float64"),
        ],
    )
    @pytest.mark.parametrize("method", METHODS)
    def test_start(
        self,
        start: Any,
        error: type[Exception],
        message: str,
        method: Method,
        fixed_answers: Callable[..., Any],
    ) -> None:
        with pytest.raises(error, match=message):
            search(fixed_answers(3), start, method=method)

    @pytest.mark.parametrize("function", [replace_and_assign, descend_by_swaps])
    def test_max_rounds(
        self, function: Callable[..., Any], fixed_answers: Callable[..., Any]
    ) -> None:
        with pytest.raises(ValueError, match="`max_rounds` must be >= 1, got 0"):
            function(fixed_answers(3), max_rounds=0)
        with pytest.raises(TypeError, match=r"`max_rounds` must be an integer, got 1\.5"):
            function(fixed_answers(3), max_rounds=1.5)

    def test_method(self, fixed_answers: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"`method` must be one of \['auto'.*got 'tabu'"):
            search(fixed_answers(3), method=cast("Any", "tabu"))

    def test_an_objective_without_what_is_needed(
        self, quadratic_assignment: Callable[..., Any]
    ) -> None:
        with pytest.raises(TypeError, match="must be callable and have a `size`, got object"):
            search(cast("Any", object()))
        for run in (replace_and_assign, lambda o: search(o, method="replace_and_assign")):
            with pytest.raises(TypeError, match=r"must offer `replacement_costs`.*Quadratic"):
                run(quadratic_assignment(3, seed=0))

    def test_answers_of_the_wrong_shape_or_kind(self, fixed_answers: Callable[..., Any]) -> None:
        wrong = fixed_answers(3, replacement=np.zeros((3, 2)), swap=np.zeros(3))
        with pytest.raises(ValueError, match=r"replacement_costs.* \(n=3, n=3\), got \(3, 2\)"):
            replace_and_assign(wrong)
        with pytest.raises(ValueError, match=r"swap_costs.* must have shape \(n, n\), got \(3,\)"):
            descend_by_swaps(wrong)
        with pytest.raises(TypeError, match=r"objective\(permutations\)` must hold real numbers"):
            search(fixed_answers(3, cost="free"))

    def test_one_cost_for_a_whole_batch(self) -> None:
        class Summed:
            size = 3

            def __call__(self, _batch: Any) -> Any:
                return np.zeros(())

        with pytest.raises(ValueError, match=r"objective\(permutations\)` must have shape \(B\)"):
            search(Summed())

    @pytest.mark.parametrize("size", [0, -1])
    def test_size(self, size: int, fixed_answers: Callable[..., Any]) -> None:
        objective = fixed_answers(1)
        objective.size = size
        with pytest.raises(ValueError, match=f"`objective.size` must be >= 1, got {size}"):
            search(objective)
