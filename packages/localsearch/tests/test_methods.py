"""Every method, against every permutation and against each other."""

from collections.abc import Callable
from itertools import permutations
from math import factorial
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_localsearch import (
    Method,
    RelabelingObjective,
    StopReason,
    descend_by_swaps,
    exhaustive,
    replace_and_assign,
    search,
)
from moe_localsearch.testing import planted_problem

METHODS = ["auto", "replace_and_assign", "descend_by_swaps", "anneal", "exhaustive"]


def all_permutations(size: int) -> Any:
    return np.array(list(permutations(range(size))))


def random_relabeling(seed: int, size: int, *, num_nonzero: int, num_rows: int = 12) -> Any:
    problem = planted_problem(
        num_rows=num_rows, size=size, num_nonzero=num_nonzero, noise=2.0, seed=seed
    )
    return problem.objective


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_exhaustive_is_the_brute_force_optimum(
    size: int, quadratic_assignment: Callable[..., Any]
) -> None:
    objective = quadratic_assignment(size, seed=size)
    result = exhaustive(objective)
    costs = objective(all_permutations(size))
    np.testing.assert_array_equal(result.permutation, all_permutations(size)[costs.argmin()])
    assert result.cost_after == costs.min()
    assert result.stop_reason is StopReason.OPTIMUM
    assert result.num_evaluations == factorial(size) + 1


def test_exhaustive_refuses_nine_and_says_how_many(
    quadratic_assignment: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match=r"`objective.size` must be <= 8 .* 9: 362880 perm"):
        exhaustive(quadratic_assignment(9, seed=0))


@given(size=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_one_assignment_solves_a_separable_objective(size: int, seed: int) -> None:
    objective = random_relabeling(seed, size, num_nonzero=1)
    assert objective.separable
    result = search(objective)
    assert result.cost_after == pytest.approx(objective(all_permutations(size)).min(), rel=1e-12)
    assert (result.method, result.stop_reason) == ("assign", StopReason.OPTIMUM)
    assert result.converged
    assert result.num_evaluations <= size * (size - 1) + 2


def test_one_assignment_is_the_best_of_40320_permutations() -> None:
    objective = random_relabeling(0, 8, num_nonzero=1, num_rows=40)
    best = exhaustive(objective)
    assert search(objective).cost_after == pytest.approx(best.cost_after, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(size=st.integers(1, 5), seed=st.integers(0, 10_000), data=st.data())
def test_no_method_is_worse_than_its_start(
    method: Method, size: int, seed: int, data: st.DataObject
) -> None:
    num_nonzero = data.draw(st.integers(1, size))
    objective = random_relabeling(seed, size, num_nonzero=num_nonzero)
    start = np.array(data.draw(st.permutations(range(size))))
    result = search(objective, start, method=method)
    assert result.cost_before == objective(start[None])[0]
    assert result.cost_after == objective(result.permutation[None])[0]
    assert result.cost_after <= result.cost_before
    assert sorted(result.permutation) == list(range(size))
    assert result.permutation.dtype == np.int64
    assert result.confirmation is None
    optimum = exhaustive(objective).cost_after
    assert result.cost_after >= optimum - 1e-12 * abs(optimum)


@given(
    costs=st.lists(st.floats(allow_nan=True), min_size=24, max_size=24),
    start=st.permutations(range(4)),
    method=st.sampled_from(["auto", "descend_by_swaps", "exhaustive"]),
)
def test_any_costs_at_all_never_give_a_worse_or_unusable_one(
    costs: Any, start: Any, method: Method
) -> None:
    table = dict(zip(permutations(range(4)), costs, strict=True))

    class Table:
        size = 4

        def __call__(self, batch: Any) -> Any:
            return np.array([table[tuple(int(i) for i in row)] for row in batch])

    result = search(Table(), start, method=method)
    before, after = table[tuple(start)], table[tuple(int(i) for i in result.permutation)]
    np.testing.assert_array_equal([result.cost_before, result.cost_after], [before, after])
    unchanged = np.array_equal(result.permutation, start)
    assert unchanged or -np.inf < after < before
    if method == "exhaustive" and not np.isnan(before):
        assert after <= min([c for c in costs if c > -np.inf], default=np.inf)
    if np.isnan(before):
        assert result.stop_reason is StopReason.NON_FINITE_COST


@pytest.mark.parametrize("size", [2, 6, 12])
def test_a_converged_swap_descent_is_a_local_optimum(
    size: int, quadratic_assignment: Callable[..., Any]
) -> None:
    objective = quadratic_assignment(size, seed=3)
    result = descend_by_swaps(objective)
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM
    for i in range(size):
        for j in range(i):
            swapped = result.permutation.copy()
            swapped[[i, j]] = swapped[[j, i]]
            assert objective(swapped[None])[0] >= result.cost_after


def test_swaps_follow_the_steepest_descent_or_better(
    quadratic_assignment: Callable[..., Any],
) -> None:
    objective = quadratic_assignment(8, seed=1)
    one_round = descend_by_swaps(objective, max_rounds=1)
    identity = np.arange(8)
    swaps = [identity.copy() for _ in range(28)]
    for row, (i, j) in zip(swaps, zip(*np.triu_indices(8, 1), strict=True), strict=True):
        row[[i, j]] = row[[j, i]]
    assert one_round.cost_after <= objective(np.array(swaps)).min()
    assert one_round.stop_reason is StopReason.MAX_ROUNDS
    assert not one_round.converged


def test_disjoint_swaps_that_do_not_add_up_are_not_taken_together(
    table_objective: Callable[..., Any],
) -> None:
    # Swapping (0, 1) or (2, 3) alone helps; both together would be worse than the start.
    costs = dict.fromkeys(permutations(range(4)), 5.0)
    costs |= {(0, 1, 2, 3): 1.0, (1, 0, 2, 3): 0.5, (0, 1, 3, 2): 0.6, (1, 0, 3, 2): 9.0}
    result = descend_by_swaps(table_objective(4, costs.values()))
    np.testing.assert_array_equal(result.permutation, [1, 0, 2, 3])


def test_an_assignment_whose_moves_do_not_add_up_is_not_taken(
    fixed_answers: Callable[..., Any],
) -> None:
    promised = -np.eye(3)[:, ::-1]
    result = replace_and_assign(fixed_answers(3, cost=1.0, replacement=promised))
    np.testing.assert_array_equal(result.permutation, [0, 1, 2])
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM


def test_swaps_promised_but_not_kept_end_the_search(fixed_answers: Callable[..., Any]) -> None:
    result = descend_by_swaps(fixed_answers(3, cost=1.0, swap=np.zeros((3, 3))))
    np.testing.assert_array_equal(result.permutation, [0, 1, 2])
    assert result.converged


def test_evaluations_are_counted_as_documented(table_objective: Callable[..., Any]) -> None:
    table = table_objective(4, np.arange(24.0))
    # One start, six swaps, and both rotations of the three triples with the cheapest swaps.
    assert descend_by_swaps(table).num_evaluations == table.num_calls == 1 + 6 + 2 * 3
    objective = random_relabeling(0, 5, num_nonzero=2)
    one_round = replace_and_assign(objective, max_rounds=1)
    assert one_round.num_evaluations == 1 + 5 * 4 + 1
    best = exhaustive(objective).permutation
    assert search(objective, best, method="descend_by_swaps").num_evaluations >= 1 + 10


def test_swaps_are_the_same_whether_asked_or_evaluated_in_full() -> None:
    objective = random_relabeling(4, 7, num_nonzero=3, num_rows=60)

    class InFull:
        size = objective.size

        def __call__(self, batch: Any) -> Any:
            return objective(batch)

    asked, in_full = descend_by_swaps(objective), descend_by_swaps(InFull())
    np.testing.assert_array_equal(asked.permutation, in_full.permutation)
    assert search(InFull()).method == "descend_by_swaps"


@pytest.mark.parametrize("method", METHODS)
def test_one_position_has_one_permutation(method: Method) -> None:
    result = search(random_relabeling(0, 1, num_nonzero=1), method=method)
    np.testing.assert_array_equal(result.permutation, [0])
    assert result.converged


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_objective_is_never_asked_about_nothing(size: int, method: Method) -> None:
    class Stacked:
        def __init__(self) -> None:
            self.size = size

        def __call__(self, permutations: Any) -> Any:
            return np.stack([np.abs(each - np.arange(size)).sum() for each in permutations])

    if method != "replace_and_assign":
        np.testing.assert_array_equal(search(Stacked(), method=method).permutation, range(size))


@pytest.mark.parametrize("large", [1e6, 1e12])
def test_an_expert_that_nobody_uses_and_that_diverged_freezes_nothing(large: float) -> None:
    outputs = np.zeros((3, 3, 1))
    outputs[:, :, 0] = [0.0, 1.0, large]
    weights = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])  # none for the third position
    targets = np.array([[1.0], [0.0], [1.0]])
    objective = RelabelingObjective(
        weights, outputs, lambda mixed, rows: ((mixed - targets[rows]) ** 2).sum(1)
    )
    result = search(objective)
    assert result.stop_reason is StopReason.OPTIMUM
    np.testing.assert_array_equal(result.permutation, [1, 0, 2])


@pytest.mark.parametrize("method", METHODS)
def test_ties_keep_the_start_and_runs_repeat(method: Method) -> None:
    outputs = np.ones((4, 5, 1))  # equal experts: every permutation costs the same
    weights = np.random.default_rng(0).uniform(size=(4, 5))
    objective = RelabelingObjective(weights, outputs, lambda _mixed, rows: np.zeros(len(rows)))
    start = [3, 1, 4, 0, 2]
    np.testing.assert_array_equal(search(objective, start, method=method).permutation, start)
    noisy = random_relabeling(8, 6, num_nonzero=2)
    first, second = (search(noisy, method=method) for _ in range(2))
    np.testing.assert_array_equal(first.permutation, second.permutation)
    assert first.cost_after == second.cost_after


def test_the_start_is_not_changed_in_place() -> None:
    start = np.array([2, 1, 0, 3])
    result = search(random_relabeling(0, 4, num_nonzero=2), start)
    np.testing.assert_array_equal(start, [2, 1, 0, 3])
    result.permutation[:] = 0
    np.testing.assert_array_equal(start, [2, 1, 0, 3])


def test_positions_without_weight_stay_as_they_are() -> None:
    problem = planted_problem(num_rows=200, size=8, num_nonzero=1, seed=0)
    weights = problem.slot_weights.copy()
    weights[:, 4:] = 0
    objective = RelabelingObjective(weights, problem.outputs, problem.row_loss)
    start = np.arange(8)[::-1].copy()
    result = search(objective, start)
    # Four experts at most are wanted by the weighted positions; the rest have no reason to move.
    taken = set(result.permutation[:4].tolist())
    idle = [i for i in range(4, 8) if int(start[i]) not in taken]
    assert idle
    assert all(result.permutation[i] == start[i] for i in idle)


@pytest.mark.parametrize("method", [each for each in METHODS if each != "replace_and_assign"])
def test_an_objective_may_work_in_place(method: Method) -> None:
    class InPlace:
        size = 5

        def __call__(self, batch: Any) -> Any:
            costs = np.abs(batch - np.arange(5)[::-1]).sum(axis=1)
            batch[:] = 0
            return costs

    result = search(InPlace(), method=method, num_restarts=1)
    np.testing.assert_array_equal(result.permutation, [4, 3, 2, 1, 0])
    assert result.cost_after == 0


def test_a_loss_may_work_in_place() -> None:
    problem = planted_problem(num_rows=300, size=6, num_nonzero=2, seed=0)

    def row_loss(mixed: Any, rows: Any) -> Any:
        mixed -= problem.row_loss.targets[rows]  # type: ignore[union-attr]
        mixed *= mixed
        return mixed.mean(axis=1)

    for gradient in (None, problem.row_loss.gradient):
        objective = RelabelingObjective(*problem[:2], row_loss, row_gradient=gradient)
        clean = RelabelingObjective(*problem[:3], row_gradient=gradient)
        np.testing.assert_allclose(
            objective.swap_costs(range(6)), clean.swap_costs(range(6)), rtol=1e-12
        )
        np.testing.assert_array_equal(search(objective).permutation, search(clean).permutation)


def test_what_is_optimal_is_not_begun_again(table_objective: Callable[..., Any]) -> None:
    for objective, method in (
        (random_relabeling(0, 5, num_nonzero=1), "auto"),
        (table_objective(4, np.arange(24.0)), "exhaustive"),
    ):
        plain = search(objective, method=cast("Method", method))
        again = search(objective, method=cast("Method", method), num_restarts=3)
        assert again.stop_reason is StopReason.OPTIMUM
        assert again.num_evaluations == plain.num_evaluations


def test_a_separable_objective_with_a_threshold_ends_in_a_local_optimum() -> None:
    objective = random_relabeling(3, 8, num_nonzero=1, num_rows=400)
    result = search(objective, move_standard_errors=1.0)
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM
    assert result.converged
