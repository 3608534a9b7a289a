"""A found permutation is kept only where rows that the search has not seen agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moe_localsearch import (
    Confirmation,
    RelabelingObjective,
    SearchResult,
    StopReason,
    relabel_slots,
    search,
)
from moe_localsearch.testing import SquaredLoss, planted_problem, planted_slots


def noise_only(num_rows: int, seed: int, size: int = 8) -> Any:
    """Loss of the outputs against random directions: every permutation has expectation 0."""
    problem = planted_problem(num_rows=num_rows, size=size, num_nonzero=2, seed=seed)
    directions = np.random.default_rng(seed + 1000).normal(size=(num_rows, 4))
    return RelabelingObjective(
        *problem[:2], lambda mixed, rows: np.sum(mixed * directions[rows], axis=1)
    )


def halves(objective: Any, num_rows: int) -> Any:
    rows = np.arange(num_rows)
    return objective.on_rows(rows[: num_rows // 2]), objective.on_rows(rows[num_rows // 2 :])


def confirmation_of(result: SearchResult) -> Confirmation:
    assert result.confirmation is not None
    return result.confirmation


def test_a_search_on_noise_is_mostly_rejected_and_then_returns_the_start() -> None:
    start = np.array([3, 1, 0, 2, 4, 5, 7, 6])
    rejected = []
    for seed in range(12):
        seen, unseen = halves(noise_only(400, seed), 400)
        result = search(seen, start, confirm=unseen, num_standard_errors=2.0)
        assert search(seen, start).cost_after < result.cost_before  # it did fit the noise
        rejected.append(not confirmation_of(result).accepted)
        if rejected[-1]:
            np.testing.assert_array_equal(result.permutation, start)
            assert result.cost_after == result.cost_before
            assert result.stop_reason is StopReason.NOT_CONFIRMED
    # At 2 standard errors 2.3 % pass by chance; with these seeds none of the 12 does.
    assert sum(rejected) >= 11


def test_a_planted_gain_is_accepted_with_the_paired_numbers() -> None:
    objective = planted_problem(num_rows=800, size=8, num_nonzero=2, seed=0).objective
    seen, unseen = halves(objective, 800)
    result = search(seen, confirm=unseen)
    gains = unseen.row_costs(range(8)) - unseen.row_costs(result.permutation)
    before, after, gain, standard_error, accepted, num_undone = confirmation_of(result)
    assert before == pytest.approx(unseen.row_costs(range(8)).mean())
    assert after == pytest.approx(unseen.row_costs(result.permutation).mean())
    assert gain == pytest.approx(gains.mean())
    assert standard_error == pytest.approx(gains.std(ddof=1) / 20)
    assert accepted
    assert num_undone == 0
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM
    assert result.cost_after < result.cost_before


def test_the_threshold_is_in_standard_errors() -> None:
    seen, unseen = halves(
        planted_problem(num_rows=800, size=8, num_nonzero=2, seed=0).objective, 800
    )
    _, _, gain, standard_error, *_ = confirmation_of(search(seen, confirm=unseen))
    ratio = gain / standard_error
    for factor, accepted in ((0.99, True), (1.01, False)):
        result = search(seen, confirm=unseen, num_standard_errors=ratio * factor)
        assert confirmation_of(result).accepted is accepted


@pytest.mark.parametrize("num_rows", [0, 1])
def test_fewer_than_two_rows_confirm_nothing(num_rows: int) -> None:
    objective = planted_problem(num_rows=100, size=4, num_nonzero=2, seed=0).objective

    class Few:
        size = 4

        def __call__(self, batch: Any) -> Any:
            return objective(batch)

        def row_costs(self, permutation: Any) -> Any:
            return objective.row_costs(permutation)[:num_rows]

    result = search(objective, confirm=Few(), num_standard_errors=0.0)
    assert confirmation_of(result).standard_error == np.inf
    assert not confirmation_of(result).accepted
    assert result.stop_reason is StopReason.NOT_CONFIRMED


def test_an_unchanged_start_has_nothing_to_confirm() -> None:
    problem = planted_problem(num_rows=400, size=4, num_nonzero=1, seed=0)
    seen, unseen = halves(problem.objective, 400)
    result = search(seen, problem.permutation, confirm=unseen)
    assert confirmation_of(result)[2:] == (0.0, 0.0, False, 0)
    assert result.stop_reason is StopReason.OPTIMUM


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_row_costs_that_are_not_finite_confirm_nothing(bad: float) -> None:
    problem = planted_problem(num_rows=100, size=4, num_nonzero=2, seed=0)

    class Broken:
        size = 4

        def __call__(self, batch: Any) -> Any:
            return np.zeros(len(batch))

        def row_costs(self, _permutation: Any) -> Any:
            return np.full(10, bad)

    result = search(problem.objective, confirm=Broken())
    assert np.isnan(confirmation_of(result).gain)
    assert not confirmation_of(result).accepted
    np.testing.assert_array_equal(result.permutation, range(4))


def wrong_pairs(problem: Any, pairs: list[tuple[int, int]]) -> Any:
    start = problem.permutation.copy()
    for pair in pairs:
        start[list(pair)] = start[list(pair[::-1])]
    return start


def test_parts_that_do_not_show_are_undone_and_the_others_kept() -> None:
    # A good start with two pairs exchanged, and rows so few and noisy that a search
    # mends the pairs and fits noise elsewhere.
    mended, fitted, kept_noise = 0, 0, 0
    for seed in range(8):
        problem = planted_problem(
            num_rows=1200, size=16, num_nonzero=4, noise=1.0, head="cross_entropy", seed=seed
        )
        start = wrong_pairs(problem, [(0, 1), (5, 9)])
        seen, unseen = halves(problem.objective, 1200)
        everything = search(seen, start)
        result = search(seen, start, confirm=unseen)
        confirmation = confirmation_of(result)
        undone = int(np.sum(result.permutation != everything.permutation))
        if confirmation.accepted:
            assert confirmation.num_undone == undone
            assert (result.stop_reason is StopReason.PARTLY_CONFIRMED) is (undone > 0)
        assert result.cost_after == seen(result.permutation[None])[0] <= result.cost_before
        mended += int(np.sum(result.permutation[[0, 1, 5, 9]] == problem.permutation[[0, 1, 5, 9]]))
        others = np.delete(np.arange(16), [0, 1, 5, 9])
        fitted += int(np.sum(everything.permutation[others] != problem.permutation[others]))
        kept_noise += int(np.sum(result.permutation[others] != problem.permutation[others]))
    assert mended >= 16  # of 32
    assert fitted >= 12
    assert kept_noise < fitted / 2


def test_slots_lose_their_doubtful_parts_too() -> None:
    problem = planted_slots(num_rows=3000, num_slots=2, size=6, num_nonzero=2, seed=0)
    start = problem.permutations.copy()
    start[0, [0, 1]] = start[0, [1, 0]]
    # On the search rows alone, slot 1 gains by exchanging its positions 2 and 3.
    targets = problem.row_loss.targets.copy()  # type: ignore[union-attr]
    lure = problem.permutations.copy()
    lure[1, [2, 3]] = lure[1, [3, 2]]
    lured = sum(
        np.einsum("ti,tio->to", problem.slot_weights[:2000, k], problem.outputs[:2000][:, each])
        for k, each in enumerate(lure)
    )
    targets[:2000] = lured
    result = relabel_slots(
        *problem[:2], SquaredLoss(targets), permutations=start, confirm_rows=range(2000, 3000)
    )
    np.testing.assert_array_equal(result.permutation, problem.permutations)
    assert result.stop_reason is StopReason.PARTLY_CONFIRMED
    assert confirmation_of(result).num_undone == 2
    assert confirmation_of(result).accepted


def test_slots_are_confirmed_too() -> None:
    problem = planted_slots(num_rows=300, num_slots=2, size=4, num_nonzero=2, seed=0)
    targets = np.random.default_rng(1).normal(size=(300, 4)) * 5
    start = np.array([[1, 0, 2, 3], [0, 1, 3, 2]])
    result = relabel_slots(
        *problem[:2],
        SquaredLoss(targets),
        permutations=start,
        confirm_rows=np.arange(300) >= 150,
        num_standard_errors=2.0,
    )
    assert result.stop_reason is StopReason.NOT_CONFIRMED
    np.testing.assert_array_equal(result.permutation, start)


def test_bad_arguments_are_named(quadratic_assignment: Callable[..., Any]) -> None:
    objective = planted_problem(num_rows=10, size=4, num_nonzero=2, seed=0).objective
    other = planted_problem(num_rows=10, size=5, num_nonzero=2, seed=0).objective
    with pytest.raises(ValueError, match=r"`confirm\.size` must equal `objective\.size`=4, got 5"):
        search(objective, confirm=other)
    with pytest.raises(TypeError, match="`confirm` must offer `row_costs`, got QuadraticAssign"):
        search(objective, confirm=quadratic_assignment(4, seed=0))
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"`num_standard_errors` must be finite .* got {bad}"):
            search(objective, confirm=objective, num_standard_errors=bad)
    word: Any = "1"
    with pytest.raises(TypeError, match="`num_standard_errors` must be a real number, got '1'"):
        search(objective, num_standard_errors=word)
