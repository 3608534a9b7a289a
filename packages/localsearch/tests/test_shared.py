"""One permutation for several objectives is the weighted sum of them, whatever is asked."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moe_localsearch import (
    Objective,
    RelabelingObjective,
    SharedObjective,
    StopReason,
    SupportsChanges,
    SupportsRelaxation,
    SupportsRowCosts,
    SupportsSeparable,
    exhaustive,
    relax,
    search,
)
from moe_localsearch.testing import planted_problem

TOLERANCE = 1e-12  # float64, some hundreds of additions


def task(seed: int, size: int = 5, *, num_rows: int = 30, num_nonzero: int = 2) -> Any:
    return planted_problem(
        num_rows=num_rows,
        size=size,
        num_nonzero=num_nonzero,
        noise=1.0,
        head="cross_entropy" if seed % 2 else "squared",
        seed=seed,
    ).objective


def not_differentiable(seed: int, size: int = 5, *, num_nonzero: int = 2) -> Any:
    problem = planted_problem(num_rows=30, size=size, num_nonzero=num_nonzero, seed=seed)
    return RelabelingObjective(problem.slot_weights, problem.outputs, problem.row_loss)


@st.composite
def tasks(draw: st.DrawFn) -> Any:
    size, count = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10_000))
    num_nonzero = draw(st.integers(1, size))
    objectives = [task(seed + i, size, num_nonzero=num_nonzero) for i in range(count)]
    weights = draw(st.lists(st.floats(0, 10), min_size=count, max_size=count))
    assume(max(weights) > 0)
    permutations = [np.array(draw(st.permutations(range(size)))) for _ in range(3)]
    return objectives, weights, np.array(permutations)


@given(tasks())
def test_costs_of_permutations_and_of_rows_are_the_weighted_sums(case: Any) -> None:
    objectives, weights, permutations = case
    shared = SharedObjective(objectives, weights=weights)
    expected = sum(w * f(permutations) for w, f in zip(weights, objectives, strict=True))
    np.testing.assert_allclose(shared(permutations), expected, rtol=TOLERANCE)
    rows = sum(w * f.row_costs(permutations[0]) for w, f in zip(weights, objectives, strict=True))
    np.testing.assert_allclose(shared.row_costs(permutations[0]), rows, rtol=TOLERANCE)
    mean = shared.row_costs(permutations[0]).mean()
    assert mean == pytest.approx(shared(permutations)[0], rel=TOLERANCE, abs=TOLERANCE)
    assert shared.size == permutations.shape[1]


@given(tasks())
def test_changes_are_differences_of_the_sum_with_errors_that_are_never_too_small(
    case: Any,
) -> None:
    objectives, weights, (current, *candidates) = case
    assume(np.any(candidates != current))  # see the test after this one
    shared = SharedObjective(objectives, weights=weights)
    changes = shared.changes(current, np.array(candidates), give_up_at=0.0)
    expected = shared(candidates) - shared(current[None])
    scale = 1 + np.abs(expected).max() + sum(weights)
    np.testing.assert_allclose(changes.mean, expected, atol=1e-11 * scale)
    assert changes.exact.all()  # nothing is given up, whatever is asked for
    for candidate, bound in zip(candidates, changes.standard_error, strict=True):
        paired = shared.row_costs(candidate) - shared.row_costs(current)
        # Squares are summed before their mean is taken off: half of the digits may be lost.
        assert paired.std(ddof=1) / np.sqrt(len(paired)) <= bound + 1e-7 * scale


@pytest.mark.parametrize("objective", [task(0), SharedObjective([task(0), task(1)])])
def test_a_candidate_that_moves_nothing_changes_nothing(objective: Any) -> None:
    changes = objective.changes(np.arange(5), np.arange(5)[None])
    assert (changes.mean, changes.standard_error) == (0, 0)


def test_a_candidate_that_is_bad_for_one_part_is_still_evaluated_in_full() -> None:
    problems = [planted_problem(num_rows=2000, size=4, num_nonzero=1, seed=s) for s in (0, 1)]
    objectives = [problem.objective for problem in problems]
    current, candidates = problems[0].permutation, problems[1].permutation[None]
    alone = objectives[0].changes(current, candidates, give_up_at=1.0)
    assert not alone.exact.any()
    shared = SharedObjective(objectives, weights=[0.1, 1.0])
    changes = shared.changes(current, candidates, give_up_at=1.0)
    assert changes.exact.all()
    expected = shared(candidates) - shared(current[None])
    np.testing.assert_allclose(changes.mean, expected, rtol=1e-9)


def test_the_bound_on_the_error_is_reached_where_tasks_agree_and_adds_up_otherwise() -> None:
    one, other = task(0), task(2)
    current, candidates = np.arange(5), np.array([[1, 0, 2, 3, 4], [0, 1, 4, 3, 2]])
    alone = one.changes(current, candidates)
    twice = SharedObjective([one, one], weights=[1, 2]).changes(current, candidates)
    np.testing.assert_allclose(twice.standard_error, 3 * alone.standard_error, rtol=TOLERANCE)
    both = SharedObjective([one, other]).changes(current, candidates).standard_error
    parts = alone.standard_error + other.changes(current, candidates).standard_error
    np.testing.assert_allclose(both, parts, rtol=TOLERANCE)


@given(tasks(), st.integers(0, 10_000))
def test_the_relaxed_cost_and_its_gradient_are_the_weighted_sums(case: Any, seed: int) -> None:
    objectives, weights, permutations = case
    size = permutations.shape[1]
    matrix = np.random.default_rng(seed).dirichlet(np.ones(size), size=size)
    cost, gradient = SharedObjective(objectives, weights=weights).relaxed_cost(matrix)
    parts = [each.relaxed_cost(matrix) for each in objectives]
    expected = sum(w * part.cost for w, part in zip(weights, parts, strict=True))
    assert cost == pytest.approx(expected, rel=TOLERANCE)
    expected = sum(w * part.gradient for w, part in zip(weights, parts, strict=True))
    np.testing.assert_allclose(gradient, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_on_the_matrix_of_a_permutation_the_relaxed_cost_is_its_cost() -> None:
    shared = SharedObjective([task(0), task(1)], weights=[0.9, 0.1])
    permutation = np.array([3, 1, 0, 4, 2])
    relaxed = shared.relaxed_cost(np.eye(5)[permutation])
    assert relaxed.cost == pytest.approx(shared(permutation[None])[0], rel=TOLERANCE)


def test_it_is_separable_or_differentiable_where_all_parts_are() -> None:
    separable, mixed = task(0, num_nonzero=1), task(1, num_nonzero=2)
    rough = not_differentiable(2, num_nonzero=1)
    assert SharedObjective([separable, separable]).separable
    assert not SharedObjective([separable, mixed]).separable
    assert SharedObjective([separable, mixed]).differentiable
    assert not SharedObjective([separable, rough]).differentiable
    with pytest.raises(TypeError, match="`objective` must offer a differentiable `relaxed_cost`"):
        relax(SharedObjective([separable, rough]))


def test_it_offers_what_the_searches_ask_for() -> None:
    shared = SharedObjective([task(0)])
    protocols = (Objective, SupportsChanges, SupportsRowCosts, SupportsSeparable)
    for protocol in (*protocols, SupportsRelaxation):
        assert isinstance(shared, protocol)


@given(tasks())
def test_a_search_is_never_worse_and_one_assignment_is_the_optimum(case: Any) -> None:
    objectives, weights, permutations = case
    shared = SharedObjective(objectives, weights=weights)
    result = search(shared, permutations[0])
    assert result.cost_after <= result.cost_before == shared(permutations[:1])[0]
    assert result.cost_after == shared(result.permutation[None])[0]
    best = exhaustive(shared).cost_after
    assert result.cost_after >= best - TOLERANCE * (1 + abs(best))
    if shared.separable:
        assert (result.method, result.stop_reason) == ("assign", StopReason.OPTIMUM)
        assert result.cost_after == pytest.approx(best, rel=1e-10, abs=1e-10)


def test_searching_one_part_of_weight_one_is_searching_it_alone() -> None:
    alone = task(3, 8, num_rows=200)
    expected, found = search(alone), search(SharedObjective([alone]))
    np.testing.assert_array_equal(found.permutation, expected.permutation)
    assert found.cost_after == expected.cost_after
    assert found.method == expected.method


def test_tasks_that_want_the_same_find_it_together_and_weights_decide_where_they_do_not() -> None:
    problems = [planted_problem(num_rows=300, size=6, num_nonzero=2, seed=s) for s in (0, 1)]
    objectives = [problem.objective for problem in problems]
    alone = [search(each).permutation for each in objectives]
    assert not np.array_equal(alone[0], alone[1])
    for first, weights in enumerate(([1, 1e-6], [1e-6, 1])):
        result = search(SharedObjective(objectives, weights=weights))
        np.testing.assert_array_equal(result.permutation, alone[first])
    together = search(SharedObjective(objectives))
    separate = sum(f(p[None])[0] for f, p in zip(objectives, alone, strict=True))
    assert together.cost_after >= separate


def test_gains_are_confirmed_and_weighed_against_their_errors() -> None:
    problems = [planted_problem(num_rows=600, size=6, num_nonzero=2, seed=s) for s in (0, 0)]
    rows = np.arange(600)
    seen, unseen = (
        SharedObjective([problem.objective.on_rows(half) for problem in problems])
        for half in (rows[:400], rows[400:])
    )
    result = search(seen, confirm=unseen, move_standard_errors=1.0)
    assert result.confirmation is not None
    assert result.confirmation.accepted
    gains = seen.row_costs(np.arange(6)) - seen.row_costs(result.permutation)
    assert result.standard_error == pytest.approx(gains.std(ddof=1) / 20)


def test_shared_objectives_can_be_shared() -> None:
    a, b, c = task(0), task(1), task(2)
    nested = SharedObjective([SharedObjective([a, b], weights=[1, 2]), c], weights=[3, 1])
    flat = SharedObjective([a, b, c], weights=[3, 6, 1])
    permutation = np.array([4, 0, 1, 2, 3])
    expected = flat.row_costs(permutation)
    np.testing.assert_allclose(nested.row_costs(permutation), expected, rtol=TOLERANCE)
    matrix = np.full((5, 5), 0.2)
    expected = flat.relaxed_cost(matrix).gradient
    np.testing.assert_allclose(nested.relaxed_cost(matrix).gradient, expected, rtol=TOLERANCE)


def test_later_changes_to_the_list_of_objectives_do_no_harm() -> None:
    objectives, weights = [task(0), task(1)], np.array([1.0, 2.0])
    shared = SharedObjective(objectives, weights=weights)
    before = shared(np.arange(5)[None])
    objectives.clear()
    weights[:] = 0
    np.testing.assert_array_equal(shared(np.arange(5)[None]), before)


def test_a_part_of_weight_zero_does_not_matter() -> None:
    alone, single = task(0), task(1, num_rows=1)
    current, candidates = np.arange(5), np.array([[1, 0, 2, 3, 4]])
    changes = SharedObjective([alone, single], weights=[1, 0]).changes(current, candidates)
    expected = alone.changes(current, candidates)
    np.testing.assert_array_equal(changes.standard_error, expected.standard_error)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            ([1.0], ValueError, r"`weights` must have shape \(G=2\), got \(1,\)"),
            (1.0, ValueError, r"`weights` must have shape \(G\), got \(\)"),
            ([1.0, np.nan], ValueError, r"`weights` must be finite, got nan at \[1\]"),
            ([1.0, np.inf], ValueError, r"`weights` must be finite, got inf at \[1\]"),
            ([1.0, -0.5], ValueError, r"`weights` must be >= 0, got -0\.5"),
            (["a", "b"], TypeError, "`weights` must hold real numbers, got dtype"),
        ],
    )
    def test_weights(self, weights: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            SharedObjective([task(0), task(1)], weights=weights)

    def test_objectives(self) -> None:
        with pytest.raises(ValueError, match="`objectives` must hold at least one, got none"):
            SharedObjective([])
        with pytest.raises(ValueError, match=r"`objectives\[1\]\.size` must be 5, got 4"):
            SharedObjective([task(0), task(1, 4)])
        bare: Any = lambda batch: np.zeros(len(batch))  # noqa: E731
        with pytest.raises(TypeError, match=r"`objectives\[1\]` must offer .* got function"):
            SharedObjective([task(0), bare])

    def test_different_rows(self) -> None:
        shared = SharedObjective([task(0, num_rows=7), task(1, num_rows=9)])
        with pytest.raises(ValueError, match=r"`objectives` must be over the same rows.*\[7, 9\]"):
            shared.row_costs(np.arange(5))

    def test_what_is_missing_is_named(self) -> None:
        class AsDocumented(SimpleNamespace):
            def __call__(self, batch: Any) -> Any:
                return np.zeros(len(batch))

        documented: Any = AsDocumented(
            size=5, changes=print, row_costs=print, separable=False, differentiable=False
        )
        with pytest.raises(TypeError, match="`relaxed_cost`"):
            SharedObjective([documented])

    def test_permutations_are_checked_by_the_parts(self) -> None:
        shared = SharedObjective([task(0), task(1)])
        with pytest.raises(ValueError, match="`permutations` must hold each of"):
            shared([[0, 0, 1, 2, 3]])
        with pytest.raises(ValueError, match="`permutation` must hold each of"):
            shared.row_costs([0, 0, 1, 2, 3])


def test_rows_of_the_sum_are_rows_of_the_parts() -> None:
    shared = SharedObjective([task(0), task(1)], weights=[1, 2])
    current = np.arange(shared.size)
    some = shared.on_rows([3, 1])
    np.testing.assert_array_equal(some.row_costs(current), shared.row_costs(current)[[3, 1]])
