"""Diagnostics count what they say."""

from typing import Any

import numpy as np

from moe_gates import count_nonzero, dead_experts, expert_load, unsaturated_fraction

WEIGHTS = np.asarray([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])


def test_counts_of_a_batch_with_two_axes(lib: Any) -> None:
    def diagnose(weights: Any) -> tuple[Any, Any, Any]:
        xp = lib.xp
        return (
            count_nonzero(weights, xp=xp),
            expert_load(weights, xp=xp),
            dead_experts(weights, xp=xp),
        )

    count, load, dead = lib.run(diagnose, WEIGHTS)
    assert np.asarray(count).tolist() == [[2, 1], [1, 0]]
    assert np.asarray(load).tolist() == [0.5, 0.5, 0.0]
    assert load.dtype == lib.xp.float64
    assert np.asarray(dead).tolist() == [False, False, True]
    assert dead.dtype == lib.xp.bool


def test_load_sums_to_the_mean_count() -> None:
    weights = np.random.default_rng(0).integers(0, 2, size=(50, 7)).astype(np.float64)
    np.testing.assert_allclose(np.sum(expert_load(weights)), np.mean(count_nonzero(weights)))


def test_without_rows_the_load_is_0_and_every_expert_dead(lib: Any) -> None:
    nothing = lib.asarray(np.zeros((0, 4)))
    assert np.asarray(count_nonzero(nothing)).shape == (0,)
    assert np.asarray(expert_load(nothing)).tolist() == [0, 0, 0, 0]
    assert np.asarray(dead_experts(nothing)).all()


def test_one_row_without_a_batch_is_a_row() -> None:
    assert int(count_nonzero(WEIGHTS[0, 0])) == 2
    assert expert_load(WEIGHTS[0, 0]).tolist() == [1, 1, 0]


def test_the_edge_of_the_band_is_saturated(lib: Any) -> None:
    scores = np.asarray([[-5.0, -0.5], [0.0, 0.49], [0.5, np.inf]])
    got = lib.run(lambda s: unsaturated_fraction(s, gamma=1.0, xp=lib.xp), scores)
    np.testing.assert_allclose(float(got), 1 / 3)


def test_no_scores_have_no_unsaturated_ones(lib: Any) -> None:
    assert float(unsaturated_fraction(lib.asarray(np.zeros((0, 3))), gamma=1.0)) == 0
