"""Between permutations: the relaxed cost, its gradient, and what follows from them."""

from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import (
    RelabelingObjective,
    StopReason,
    frank_wolfe,
    permutation_matrix,
    search,
)
from moe_localsearch.testing import planted_problem


def doubly_stochastic(size: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(5))
    return sum(w * np.eye(size)[rng.permutation(size)] for w in shares)


@given(
    size=st.integers(1, 6),
    seed=st.integers(0, 9999),
    head=st.sampled_from(["squared", "cross_entropy"]),
    data=st.data(),
)
def test_the_relaxed_cost_is_the_cost_at_permutations_and_has_its_gradient(
    size: int, seed: int, head: Literal["squared", "cross_entropy"], data: st.DataObject
) -> None:
    num_nonzero = data.draw(st.integers(1, size))
    problem = planted_problem(num_rows=9, size=size, num_nonzero=num_nonzero, head=head, seed=seed)
    offset = np.random.default_rng(seed).normal(size=(9, 4))
    loss = problem.row_loss
    objective = RelabelingObjective(*problem[:3], offset=offset, row_gradient=loss.gradient)
    permutation = np.array(data.draw(st.permutations(range(size))))
    at_vertex = objective.relaxed_cost(permutation_matrix(permutation, xp=np, dtype=np.float64))
    assert at_vertex.cost == pytest.approx(objective(permutation[None])[0], rel=1e-12)

    matrix = doubly_stochastic(size, seed)
    gradient = objective.relaxed_cost(matrix).gradient
    step = 1e-6
    for i, j in np.ndindex(size, size):
        moved = matrix.copy()
        moved[i, j] += step
        above = objective.relaxed_cost(moved).cost
        moved[i, j] -= 2 * step
        slope = (above - objective.relaxed_cost(moved).cost) / (2 * step)
        assert gradient[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("num_nonzero", [1, 2, 4])
@pytest.mark.parametrize("head", ["squared", "cross_entropy"])
def test_a_planted_permutation_is_found_with_a_few_gradients(
    num_nonzero: int, head: Literal["squared", "cross_entropy"]
) -> None:
    problem = planted_problem(num_rows=3000, size=12, num_nonzero=num_nonzero, head=head, seed=0)
    result = frank_wolfe(problem.objective)
    np.testing.assert_array_equal(result.permutation, problem.permutation)
    # The start, at most ten gradients and as many permutations, and the rounding.
    assert result.num_evaluations <= 1 + 10 + 10 + 1


def test_it_is_the_first_phase_of_auto_where_there_are_gradients() -> None:
    problem = planted_problem(num_rows=500, size=8, num_nonzero=2, seed=0)
    assert search(problem.objective).method == "frank_wolfe + descend_by_swaps"
    without = RelabelingObjective(*problem[:3])
    assert not without.differentiable
    assert search(without).method == "replace_and_assign + descend_by_swaps"
    with pytest.raises(TypeError, match=r"must offer a differentiable `relaxed_cost`.*Relabeling"):
        frank_wolfe(without)
    with pytest.raises(TypeError, match="`row_gradient` must be given to the objective"):
        without.relaxed_cost(np.eye(8))


def test_a_flat_cost_keeps_the_start() -> None:
    objective = RelabelingObjective(
        np.ones((3, 4)),
        np.ones((3, 4, 1)),
        lambda mixed, _rows: mixed[:, 0],
        row_gradient=lambda mixed, _rows: np.ones_like(mixed),
    )
    result = frank_wolfe(objective, [3, 0, 2, 1])
    np.testing.assert_array_equal(result.permutation, [3, 0, 2, 1])
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_gradients_that_are_not_finite_end_it(bad: float) -> None:
    problem = planted_problem(num_rows=50, size=4, num_nonzero=2, seed=0)
    objective = RelabelingObjective(
        *problem[:3], row_gradient=lambda mixed, _rows: np.full_like(mixed, bad)
    )
    result = frank_wolfe(objective, [1, 0, 2, 3])
    np.testing.assert_array_equal(result.permutation, [1, 0, 2, 3])
    assert result.stop_reason is StopReason.NON_FINITE_COST
    both = search(objective)
    assert both.cost_after < both.cost_before  # the swaps still run
    assert both.stop_reason is StopReason.NON_FINITE_COST


def test_an_infinite_cost_at_a_permutation_does_not_end_the_way_there() -> None:
    probabilities = np.random.default_rng(3).uniform(size=(60, 5, 1))
    probabilities[:, 2] = 0.0  # alone it is impossible; in a mixture it is not

    def loss(mixed: Any, _rows: Any) -> Any:
        with np.errstate(divide="ignore"):
            return -np.log(mixed[:, 0])

    objective = RelabelingObjective(
        np.eye(5)[np.random.default_rng(4).integers(5, size=60)],
        probabilities,
        loss,
        row_gradient=lambda mixed, _rows: -1 / mixed,
    )
    asked: list[Any] = []
    relaxed_cost = objective.relaxed_cost
    objective.relaxed_cost = lambda matrix: (asked.append(matrix), relaxed_cost(matrix))[1]  # type: ignore[method-assign,func-returns-value]
    frank_wolfe(objective)
    assert len(asked) > 2
    assert all(not np.array_equal(*pair) for pair in pairwise(asked))


def test_a_concave_relaxation_is_followed_to_a_permutation() -> None:
    class Concave:
        """Minus the squared distance from the barycentre, tilted: every vertex is a minimum."""

        size = 4
        differentiable = True
        tilt = np.random.default_rng(0).normal(size=(4, 4))

        def relaxed_cost(self, matrix: Any) -> Any:
            centred = matrix - 0.25
            return (
                float(np.sum(0.1 * self.tilt * matrix - centred**2)),
                0.1 * self.tilt - 2 * centred,
            )

        def __call__(self, batch: Any) -> Any:
            return np.array([self.relaxed_cost(np.eye(4)[each])[0] for each in batch])

    result = frank_wolfe(Concave())
    every = search(Concave(), method="exhaustive")
    assert result.cost_after == pytest.approx(every.cost_after)
    assert result.converged


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (lambda mixed, _rows: mixed[:, :1], r"`row_gradient\(mixed, rows\)` .*\(R=9, O=4\)"),
        (lambda mixed, _rows: mixed[0], r"`row_gradient\(mixed, rows\)` must have shape \(R, O\)"),
    ],
)
def test_a_gradient_of_the_wrong_shape_is_named(gradient: Any, message: str) -> None:
    problem = planted_problem(num_rows=9, size=3, num_nonzero=2, seed=0)
    objective = RelabelingObjective(*problem[:3], row_gradient=gradient)
    with pytest.raises(ValueError, match=message):
        frank_wolfe(objective)


def test_a_matrix_of_the_wrong_shape_is_named() -> None:
    objective = planted_problem(num_rows=9, size=3, num_nonzero=2, seed=0).objective
    with pytest.raises(ValueError, match=r"`matrix` must have shape \(n=3, n=3\), got \(2, 2\)"):
        objective.relaxed_cost(np.eye(2))
    word: Any = 3
    with pytest.raises(TypeError, match="`row_gradient` must be callable, got int"):
        RelabelingObjective(
            np.eye(2), np.zeros((2, 2, 1)), lambda m, _r: m[:, 0], row_gradient=word
        )
