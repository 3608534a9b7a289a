"""The objective over cached expert outputs: exact answers from the rows that they touch."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import (
    Objective,
    RelabelingObjective,
    SupportsReplacementCosts,
    SupportsRowCosts,
    SupportsSeparable,
    SupportsSwapCosts,
    _relabeling,
)
from moe_localsearch.testing import PlantedProblem, planted_problem

TOLERANCE = 1e-12  # float64, some hundreds of additions


def cost_by_the_definition(problem: PlantedProblem, experts: Any, offset: Any = 0.0) -> Any:
    """Mix all experts of all rows at once, weights of 0 included; `experts` may repeat."""
    rows = np.arange(len(problem.outputs))
    weights, outputs = (np.asarray(a, dtype=np.float64) for a in problem[:2])
    mixed = offset + np.einsum("ti,tio->to", weights, outputs[:, experts])
    return problem.row_loss(mixed, rows).mean()


@st.composite
def problems(draw: st.DrawFn) -> Any:
    size = draw(st.integers(1, 6))
    problem = planted_problem(
        num_rows=draw(st.integers(1, 20)),
        size=size,
        num_nonzero=draw(st.integers(1, size)),
        head=draw(st.sampled_from(["squared", "cross_entropy"])),
        seed=draw(st.integers(0, 10_000)),
    )
    if draw(st.booleans()):
        weights, outputs = problem.slot_weights.astype("f4"), problem.outputs.astype("f4")
        problem = problem._replace(slot_weights=weights, outputs=outputs)
    return problem


@st.composite
def problems_and_permutations(draw: st.DrawFn) -> Any:
    problem = draw(problems())
    return problem, np.array(draw(st.permutations(range(problem.slot_weights.shape[1]))))


@given(problems_and_permutations())
def test_costs_are_those_of_the_definition(case: Any) -> None:
    problem, permutation = case
    objective = problem.objective
    expected = cost_by_the_definition(problem, permutation)
    np.testing.assert_allclose(objective(permutation[None]), [expected], rtol=TOLERANCE)
    np.testing.assert_allclose(objective.row_costs(permutation).mean(), expected, rtol=TOLERANCE)
    assert objective(permutation[None]).dtype == np.float64


@given(problems_and_permutations())
def test_replacement_costs_are_full_evaluations(case: Any) -> None:
    problem, permutation = case
    expected = np.empty((len(permutation), len(permutation)))
    for i, j in np.ndindex(expected.shape):
        experts = permutation.copy()
        experts[i] = j
        expected[i, j] = cost_by_the_definition(problem, experts)
    answer = problem.objective.replacement_costs(permutation)
    np.testing.assert_allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE)


@given(problems_and_permutations())
def test_swap_costs_are_full_evaluations(case: Any) -> None:
    problem, permutation = case
    expected = np.empty((len(permutation), len(permutation)))
    for i, j in np.ndindex(expected.shape):
        experts = permutation.copy()
        experts[[i, j]] = experts[[j, i]]
        expected[i, j] = cost_by_the_definition(problem, experts)
    answer = problem.objective.swap_costs(permutation)
    np.testing.assert_allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_offset_is_part_of_every_answer() -> None:
    problem = planted_problem(num_rows=15, size=4, num_nonzero=2, seed=3)
    offset = np.random.default_rng(0).normal(size=(15, 4))
    objective = RelabelingObjective(*problem[:3], offset=offset)
    identity = np.arange(4)
    expected = cost_by_the_definition(problem, identity, offset)
    np.testing.assert_allclose(objective(identity[None]), [expected], rtol=TOLERANCE)
    for answer in (objective.replacement_costs(identity), objective.swap_costs(identity)):
        np.testing.assert_allclose(np.diag(answer), expected, rtol=TOLERANCE)
    moved = cost_by_the_definition(problem, [0, 1, 0, 3], offset)
    assert objective.replacement_costs(identity)[2, 0] == pytest.approx(moved, rel=TOLERANCE)
    without = problem.objective.mixed(identity)
    np.testing.assert_allclose(objective.mixed(identity), offset + without, atol=TOLERANCE)


def test_small_blocks_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = planted_problem(num_rows=40, size=5, num_nonzero=3, seed=0).objective
    whole = objective.replacement_costs(range(5)), objective.swap_costs(range(5))
    monkeypatch.setattr(_relabeling, "ELEMENTS_PER_CALL", 28)
    blocks = objective.replacement_costs(range(5)), objective.swap_costs(range(5))
    np.testing.assert_allclose(blocks, whole, rtol=TOLERANCE)


def test_only_rows_with_a_weight_are_asked_about() -> None:
    problem = planted_problem(num_rows=100, size=10, num_nonzero=1, seed=0)
    asked = []

    def row_loss(mixed: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return problem.row_loss(mixed, rows)

    objective = RelabelingObjective(problem.slot_weights, problem.outputs, row_loss)
    for question, expected in (
        (objective.replacement_costs, 100 + 100 * 9),
        (objective.swap_costs, 100 * 9),  # the permutation itself is remembered
    ):
        asked.clear()
        question(range(10))
        assert sum(asked) == expected


@pytest.mark.parametrize("num_nonzero", [1, 2])
def test_separable_exactly_where_no_row_has_two_weights(num_nonzero: int) -> None:
    problem = planted_problem(num_rows=9, size=4, num_nonzero=num_nonzero, seed=0)
    assert problem.objective.separable is (num_nonzero == 1)
    assert RelabelingObjective(np.zeros((9, 4)), *problem[1:3]).separable


def test_a_subset_of_rows_keeps_their_index_for_the_loss() -> None:
    problem = planted_problem(num_rows=30, size=4, num_nonzero=2, seed=0)
    offset = np.ones((30, 4))
    objective = RelabelingObjective(*problem[:3], offset=offset)
    every = objective.row_costs(range(4))
    np.testing.assert_array_equal(objective.on_rows([7, 3]).row_costs(range(4)), every[[7, 3]])
    mask = np.arange(30) % 3 == 0
    twice = objective.on_rows(mask).on_rows([2, 0])
    np.testing.assert_array_equal(twice.row_costs(range(4)), every[[6, 0]])


def test_it_offers_every_question() -> None:
    objective = planted_problem(num_rows=5, size=3, num_nonzero=2, seed=0).objective
    for protocol in (
        Objective,
        SupportsReplacementCosts,
        SupportsSwapCosts,
        SupportsRowCosts,
        SupportsSeparable,
    ):
        assert isinstance(objective, protocol)


def zero_loss(_mixed: Any, rows: Any) -> Any:
    return np.zeros(len(rows))


class TestBadArguments:
    @pytest.mark.parametrize(
        ("weights", "outputs", "offset", "message"),
        [
            ((5, 3), (5, 4, 2), None, r"`outputs` .*\(T=5, n=3, O=2\), got \(5, 4, 2\)"),
            ((5, 3), (4, 3, 2), None, r"`outputs` .*\(T=5, n=3, O=2\), got \(4, 3, 2\)"),
            ((5, 3), (5, 3), None, r"`outputs` must have shape \(T, n, O\), got \(5, 3\)"),
            ((5,), (5, 3, 2), None, r"`slot_weights` must have shape \(T, n\), got \(5,\)"),
            ((0, 3), (0, 3, 2), None, r"`slot_weights` must have T >= 1 rows, got shape \(0, 3\)"),
            ((5, 0), (5, 0, 2), None, r"`slot_weights` must have n >= 1"),
            ((5, 3), (5, 3, 2), (5, 1), r"`offset` .*\(T=5, O=2\), got \(5, 1\)"),
            ((5, 3), (5, 3, 2), (5,), r"`offset` must have shape \(T, O\), got \(5,\)"),
        ],
    )
    def test_shapes(self, weights: Any, outputs: Any, offset: Any, message: str) -> None:
        given_offset = None if offset is None else np.zeros(offset)
        with pytest.raises(ValueError, match=message):
            RelabelingObjective(
                np.zeros(weights), np.zeros(outputs), zero_loss, offset=given_offset
            )

    def test_weights_that_are_not_finite(self) -> None:
        weights = np.zeros((2, 2))
        weights[1, 0] = np.nan
        with pytest.raises(ValueError, match=r"`slot_weights` must be finite, got nan at \[1, 0\]"):
            RelabelingObjective(weights, np.zeros((2, 2, 1)), zero_loss)

    def test_dtypes(self) -> None:
        with pytest.raises(TypeError, match="`outputs` must hold real numbers, got dtype complex"):
            RelabelingObjective(np.zeros((2, 2)), np.zeros((2, 2, 1), dtype=complex), zero_loss)

    def test_a_loss_that_is_no_function(self) -> None:
        loss: Any = 3
        with pytest.raises(TypeError, match="`row_loss` must be callable, got int"):
            RelabelingObjective(np.zeros((2, 2)), np.zeros((2, 2, 1)), loss)

    def test_permutations(self) -> None:
        objective = planted_problem(num_rows=5, size=3, num_nonzero=2, seed=0).objective
        with pytest.raises(ValueError, match=r"`permutations` .* got 1 at positions \[1, 2\]"):
            objective(np.array([[0, 1, 2], [0, 1, 1]]))
        with pytest.raises(ValueError, match=r"`permutations` must have shape \(B=3, n=3\)"):
            objective(np.arange(3))
        with pytest.raises(ValueError, match=r"`permutation` must have shape \(\.\.\., n=3\)"):
            objective.swap_costs(np.arange(4))

    def test_a_loss_of_the_wrong_shape(self) -> None:
        objective = RelabelingObjective(
            np.ones((4, 2)), np.zeros((4, 2, 3)), lambda mixed, _rows: mixed
        )
        with pytest.raises(ValueError, match=r"`row_loss\(mixed, rows\)` must have shape \(R\)"):
            objective(np.array([[0, 1]]))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([0, 5], r"`rows` must be in \[0, T=5\), got 5"),
            ([], "`rows` must select at least one of T=5 rows, got none"),
            (np.zeros(5, dtype=bool), "`rows` must select at least one of T=5 rows, got none"),
            ([-1], r"`rows` must be in \[0, T=5\), got -1"),
            ([2, 1, 2], r"`rows` must be distinct, got 2 more than once"),
            ([0.5], r"`rows` must be a boolean mask of shape \(T=5,\) or a list of integers"),
            (np.ones(4, dtype=bool), r"`rows` must be a boolean mask .* got shape \(4,\)"),
        ],
    )
    def test_rows(self, rows: Any, message: str) -> None:
        objective = planted_problem(num_rows=5, size=3, num_nonzero=2, seed=0).objective
        with pytest.raises(ValueError, match=message):
            objective.on_rows(rows)
