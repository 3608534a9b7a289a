"""Planted problems are recovered on rows that the search has not seen."""

from typing import Any, Literal

import numpy as np
import pytest

from moe_localsearch import relabel_slots, search
from moe_localsearch.testing import PlantedSlots, planted_problem, planted_slots


def recovered_share(objective: Any, start: Any, found: Any, planted: Any) -> Any:
    before, after, best = objective(np.stack([start, found, planted]))
    return (before - after) / (before - best)


# Measured with 2000 search and 1000 other rows, seeds 0 to 9: each recovered a share of 1.000.
@pytest.mark.parametrize("head", ["squared", "cross_entropy"])
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("num_nonzero", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_permutation_is_recovered(
    head: Literal["squared", "cross_entropy"], size: int, num_nonzero: int, seed: int
) -> None:
    problem = planted_problem(
        num_rows=3000, size=size, num_nonzero=num_nonzero, head=head, seed=seed
    )
    objective = problem.objective
    seen, unseen = objective.on_rows(range(2000)), objective.on_rows(range(2000, 3000))
    result = search(seen, confirm=unseen)
    share = recovered_share(unseen, np.arange(size), result.permutation, problem.permutation)
    assert share > 0.95
    assert result.confirmation is not None
    assert result.confirmation.accepted
    assert result.converged


# Measured on as many rows with n = 8, K = 3, seeds 0 to 4: each recovered a share of 1.000.
@pytest.mark.parametrize("num_nonzero", [1, 2])
def test_planted_slots_are_recovered(num_nonzero: int) -> None:
    problem = planted_slots(num_rows=3000, num_slots=3, size=8, num_nonzero=num_nonzero, seed=0)
    unseen = np.arange(2000, 3000)
    result = relabel_slots(*problem[:3], confirm_rows=unseen)
    start = np.tile(np.arange(8), (3, 1))
    before, after, best = (
        loss_of_slots(problem, each, unseen) for each in (start, result.permutation, problem[3])
    )
    assert (before - after) / (before - best) > 0.95
    assert result.confirmation is not None
    assert result.confirmation.accepted
    assert result.confirmation.gain == pytest.approx(before - after, rel=1e-9)


def loss_of_slots(problem: PlantedSlots, permutations: Any, rows: Any) -> Any:
    mixed = sum(
        np.einsum(
            "ti,tio->to", problem.slot_weights[rows, k], problem.outputs[rows][:, permutation]
        )
        for k, permutation in enumerate(permutations)
    )
    return problem.row_loss(mixed, rows).mean()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_experts_are_as_correlated_as_asked(correlation: float) -> None:
    problem = planted_problem(
        num_rows=200, size=3, num_nonzero=1, num_outputs=3000, correlation=correlation, seed=0
    )
    first, second = problem.outputs[:, 0].ravel(), problem.outputs[:, 1].ravel()
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(correlation, abs=0.03)
    assert problem.outputs.std() == pytest.approx(1, abs=0.05)


def test_weights_have_as_many_nonzeros_as_asked_and_sum_to_one() -> None:
    weights = planted_slots(num_rows=50, num_slots=2, size=6, num_nonzero=3, seed=0).slot_weights
    assert np.all(np.count_nonzero(weights, axis=-1) == 3)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)), 1, rtol=1e-12)


def test_a_seed_repeats_and_another_differs() -> None:
    first, again, other = (
        planted_problem(num_rows=5, size=4, num_nonzero=2, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.outputs, again.outputs)
    np.testing.assert_array_equal(first.permutation, again.permutation)
    assert not np.array_equal(first.outputs, other.outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nonzero": 5}, r"`num_nonzero` must be in \[1, size=4\], got 5"),
        ({"num_nonzero": 0}, "`num_nonzero` must be >= 1, got 0"),
        ({"num_rows": 0}, "`num_rows` must be >= 1, got 0"),
        ({"correlation": 1.5}, r"`correlation` must be in \[0, 1\], got 1\.5"),
        ({"noise": -1.0}, "`noise` must be finite and >= 0, got -1"),
        ({"head": "hinge"}, "`head` must be 'squared' or 'cross_entropy', got 'hinge'"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    settings = {"num_rows": 9, "size": 4, "num_nonzero": 2, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        planted_problem(**settings)


@pytest.mark.parametrize("name", ["correlation", "noise"])
def test_settings_that_are_no_numbers_are_named(name: str) -> None:
    settings: dict[str, Any] = {"num_rows": 9, "size": 4, "num_nonzero": 2, "seed": 0, name: "1"}
    with pytest.raises(TypeError, match=f"`{name}` must be a real number, got '1'"):
        planted_problem(**settings)
