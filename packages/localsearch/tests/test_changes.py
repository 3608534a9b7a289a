"""What a few changed positions cost: exact where it is said to be, with standard errors."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import (
    Method,
    RelabelingObjective,
    SupportsChanges,
    _relabeling,
    descend_by_swaps,
    search,
)
from moe_localsearch._moves import replacements, swaps, three_cycles
from moe_localsearch.testing import PlantedProblem, planted_problem

TOLERANCE = 1e-12  # float64, some hundreds of additions


def row_losses_by_the_definition(problem: PlantedProblem, experts: Any) -> Any:
    """Mix all experts of all rows at once, weights of 0 included; `experts` may repeat."""
    rows = np.arange(len(problem.outputs))
    mixed = np.einsum("ti,tio->to", problem.slot_weights, problem.outputs[:, experts])
    return problem.row_loss(mixed, rows)


def all_of(parts: Any) -> Any:
    return np.concatenate(list(parts))


@given(
    size=st.integers(1, 6),
    num_rows=st.integers(1, 20),
    seed=st.integers(0, 9999),
    data=st.data(),
)
def test_changes_are_paired_means_over_rows(
    size: int, num_rows: int, seed: int, data: st.DataObject
) -> None:
    num_nonzero = data.draw(st.integers(1, size))
    problem = planted_problem(num_rows=num_rows, size=size, num_nonzero=num_nonzero, seed=seed)
    permutation = np.array(data.draw(st.permutations(range(size))))
    experts = st.lists(st.integers(0, size - 1), min_size=size, max_size=size)
    candidates = np.array(data.draw(st.lists(experts, min_size=1, max_size=4)))  # may repeat
    mean, standard_error, exact = problem.objective.changes(permutation, candidates)
    before = row_losses_by_the_definition(problem, permutation)
    for i, each in enumerate(candidates):
        differences = row_losses_by_the_definition(problem, each) - before
        assert mean[i] == pytest.approx(differences.mean(), rel=TOLERANCE, abs=TOLERANCE)
        expected = differences.std(ddof=1) / num_rows**0.5 if num_rows > 1 else np.inf
        assert standard_error[i] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert exact.all()


@given(size=st.integers(3, 7), data=st.data())
def test_moves_are_what_they_say(size: int, data: st.DataObject) -> None:
    permutation = np.array(data.draw(st.permutations(range(size))))
    swapped = all_of(swaps(permutation))
    assert len(np.unique(swapped, axis=0)) == len(swapped) == size * (size - 1) // 2
    assert np.all((swapped != permutation).sum(axis=1) == 2)
    replaced = all_of(replacements(permutation))
    assert len(np.unique(replaced, axis=0)) == len(replaced) == size * (size - 1)
    assert np.all((replaced != permutation).sum(axis=1) == 1)
    triples = np.array([[0, 1, 2], [0, size - 2, size - 1]])
    rotated = three_cycles(permutation, triples)
    assert len(rotated) == 4
    for moves in (swapped, rotated):
        np.testing.assert_array_equal(np.sort(moves, axis=1), np.sort(permutation) + 0 * moves)
    for triple, forward, backward in zip(triples, rotated[:2], rotated[2:], strict=True):
        for moved in (forward, backward):
            np.testing.assert_array_equal(np.flatnonzero(moved != permutation), triple)
        assert not np.array_equal(forward, backward)


def count_row_losses(problem: PlantedProblem) -> tuple[RelabelingObjective, list[int]]:
    asked: list[int] = []

    def row_loss(mixed: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return problem.row_loss(mixed, rows)

    return RelabelingObjective(problem.slot_weights, problem.outputs, row_loss), asked


def test_giving_up_saves_row_losses_and_loses_no_candidate_that_matters() -> None:
    problem = planted_problem(num_rows=20_000, size=12, num_nonzero=2, seed=0)
    objective, asked = count_row_losses(problem)
    near = problem.permutation.copy()
    near[[0, 1]] = near[[1, 0]]
    candidates = all_of(swaps(near))
    every = objective.changes(near, candidates)
    full = sum(asked)
    asked.clear()
    raced = objective.changes(near, candidates, give_up_at=4.0)
    assert sum(asked) < full / 5
    assert every.exact.all()
    given_up = ~raced.exact
    assert 0.5 < given_up.mean() < 1
    assert np.all(every.mean[given_up] > 0)
    assert np.all(raced.mean[given_up] > 4 * raced.standard_error[given_up])
    for field in ("mean", "standard_error"):
        kept: Any = getattr(raced, field)
        expected: Any = getattr(every, field)
        np.testing.assert_allclose(kept[~given_up], expected[~given_up], rtol=1e-9)
    assert raced.exact[every.mean.argmin()]
    np.testing.assert_array_equal(candidates[raced.mean.argmin()], problem.permutation)


def test_a_candidate_that_no_sampled_row_touches_is_not_given_up() -> None:
    # Position 2 has a weight in the last rows only; what it does there is a gain.
    weights = np.zeros((4000, 3))
    weights[:, 0] = 1
    weights[-8:] = [0, 0, 1]
    outputs = np.tile(np.array([[0.0], [1.0], [2.0]]), (4000, 1, 1))
    objective = RelabelingObjective(weights, outputs, lambda mixed, _rows: mixed[:, 0])
    changes = objective.changes(np.arange(3), all_of(swaps(np.arange(3))), give_up_at=0.0)
    # (0, 1) and (0, 2) cost more in every row; (1, 2) saves 1 in eight rows.
    np.testing.assert_array_equal(changes.exact, [False, False, True])
    assert changes.mean[2] == pytest.approx(-8 / 4000)


def test_blocks_of_rows_and_candidates_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = planted_problem(num_rows=700, size=5, num_nonzero=3, seed=0)
    candidates = all_of([*swaps(np.arange(5)), *replacements(np.arange(5))])
    whole = problem.objective.changes(range(5), candidates, give_up_at=3.0)
    monkeypatch.setattr(_relabeling, "ELEMENTS_PER_CALL", 28)
    monkeypatch.setattr(_relabeling, "PER_PART", 7)
    blocks = problem.objective.changes(range(5), candidates, give_up_at=3.0)
    for one, other in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(np.array(one, float), np.array(other, float), rtol=1e-9)


def test_no_candidates_have_no_changes() -> None:
    objective = planted_problem(num_rows=5, size=3, num_nonzero=1, seed=0).objective
    assert isinstance(objective, SupportsChanges)
    assert [len(each) for each in objective.changes(range(3), np.empty((0, 3), int))] == [0] * 3


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([[0, 1]], ValueError, r"`candidates` must have shape \(B, n=3\), got \(1, 2\)"),
        ([0, 1, 2], ValueError, r"`candidates` must have shape \(B, n=3\), got \(3,\)"),
        ([[0, 1, 3]], ValueError, r"`candidates` must be in \[0, n=3\), got 3"),
        ([[0, -1, 2]], ValueError, r"`candidates` must be in \[0, n=3\), got -1"),
        ([[0.0, 1.0, 2.0]], TypeError, "`candidates` must hold integers, got dtype float64"),
    ],
)
def test_bad_candidates_are_named(candidates: Any, error: type[Exception], message: str) -> None:
    objective = planted_problem(num_rows=5, size=3, num_nonzero=1, seed=0).objective
    with pytest.raises(error, match=message):
        objective.changes(range(3), candidates)


class TestMoveStandardErrors:
    def test_a_good_start_is_not_left_for_noise(self) -> None:
        # The planted permutation is the best in expectation; on 300 rows others look better.
        moved = [0, 0]
        for seed in range(6):
            problem = planted_problem(
                num_rows=300, size=12, num_nonzero=4, noise=2.0, head="cross_entropy", seed=seed
            )
            for which, num_standard_errors in enumerate((0.0, 3.0)):
                result = descend_by_swaps(
                    problem.objective,
                    problem.permutation,
                    move_standard_errors=num_standard_errors,
                )
                moved[which] += int(np.sum(result.permutation != problem.permutation))
        assert moved[0] > 20
        assert moved[1] == 0

    def test_each_move_taken_is_above_the_threshold(self) -> None:
        objective = planted_problem(num_rows=400, size=8, num_nonzero=2, seed=0).objective
        result = descend_by_swaps(objective, max_rounds=1, move_standard_errors=2.0)
        gains = objective.row_costs(range(8)) - objective.row_costs(result.permutation)
        assert gains.mean() > 2 * gains.std(ddof=1) / 20 > 0
        assert result.standard_error == pytest.approx(gains.std(ddof=1) / 20)

    def test_a_sure_gain_is_found_behind_a_larger_one_that_is_not(self) -> None:
        noise = np.random.default_rng(0).normal(size=200)
        noise -= noise.mean()

        class Rows:
            """An objective that tells its rows apart, but knows nothing of changes."""

            size = 4

            def row_costs(self, permutation: Any) -> Any:
                unsure = permutation[0] == 1 and permutation[1] == 0
                sure = permutation[2] == 3 and permutation[3] == 2
                return unsure * (-0.2 + 20 * noise) - 0.1 * sure

            def __call__(self, permutations: Any) -> Any:
                return np.array([self.row_costs(each).mean() for each in permutations])

        result = descend_by_swaps(Rows(), move_standard_errors=2.0)
        np.testing.assert_array_equal(result.permutation, [0, 1, 3, 2])

    @pytest.mark.parametrize("method", ["exhaustive", "descend_by_swaps", "anneal"])
    def test_every_method_asks_for_it(self, method: Method) -> None:
        problem = planted_problem(num_rows=50, size=5, num_nonzero=2, noise=3.0, seed=0)
        for errors, moves in ((0.0, True), (50.0, False)):
            result = search(problem.objective, method=method, move_standard_errors=errors)
            assert np.array_equal(result.permutation, range(5)) != moves

    def test_it_needs_rows(self, quadratic_assignment: Any) -> None:
        objective = quadratic_assignment(4, seed=0)
        with pytest.raises(TypeError, match="must offer `row_costs` for `move_standard_errors`"):
            descend_by_swaps(objective, move_standard_errors=1.0)
        for bad in (-1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="`move_standard_errors` must be finite and >= 0"):
                descend_by_swaps(objective, move_standard_errors=bad)
