"""Diagnostics count what they say."""

from typing import Any

import numpy as np

from moe_gates import (
    comet_gate,
    count_duplicates,
    count_nonzero,
    count_union,
    dead_experts,
    expert_load,
    simplex_error,
    total_variation,
    unsaturated_fraction,
)

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


def test_a_union_counts_an_expert_once(lib: Any) -> None:
    got = lib.run(lambda w: count_union(w, xp=lib.xp), WEIGHTS)
    assert np.asarray(got).tolist() == [2, 1]
    assert np.asarray(count_union(lib.asarray(np.zeros((0, 2, 3))))).shape == (0,)


def test_duplicates_are_the_slots_beyond_the_first_of_each_expert(lib: Any) -> None:
    picks = [[0, 0, 0], [0, 1, 0], [2, 1, 0], [3, 3, 3]]  # the last row selects nothing
    slots = np.eye(4)[:, :3][np.asarray(picks)]
    got = lib.run(lambda w: count_duplicates(w, xp=lib.xp), slots)
    assert np.asarray(got).tolist() == [2, 1, 0, 0]


def test_duplicates_are_what_a_hard_gate_leaves_of_its_bound() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 4, 7)), rng.normal(size=(200, 4, 8))
    gate = comet_gate(*scores, gamma=1.0, hard=True)
    duplicates = count_duplicates(gate.slot_weights)
    assert np.any(duplicates > 0)
    np.testing.assert_array_equal(count_nonzero(gate.weights) + duplicates, 4)


def test_the_simplex_error_is_the_largest_over_rows(lib: Any) -> None:
    rows = np.asarray([[0.5, 0.5, 0.0], [0.5, 0.25, 0.0], [1.25, -0.25, 0.5], [1.5, 0.0, 0.0]])
    error = lib.run(lambda w: simplex_error(w, xp=lib.xp), rows)
    assert (float(error.sum_error), float(error.negative_part)) == (0.5, 0.25)
    assert error.sum_error.dtype == lib.xp.float64
    for fine in (rows[:1], rows[:0]):
        error = simplex_error(lib.asarray(fine), xp=lib.xp)
        assert (float(error.sum_error), float(error.negative_part)) == (0, 0)


def test_the_simplex_error_shows_a_nan(lib: Any) -> None:
    error = simplex_error(lib.asarray(np.asarray([[0.5, 0.5], [np.nan, 1.0]])), xp=lib.xp)
    assert np.isnan(float(error.sum_error))
    assert np.isnan(float(error.negative_part))


def test_total_variation_is_the_weight_that_moves(lib: Any) -> None:
    one = np.asarray([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]], [[0.75, 0.25, 0.0]]])
    other = np.asarray([[[0.5, 0.5, 0.0]], [[0.0, 0.5, 0.5]], [[0.5, 0.25, 0.25]]])
    got = lib.run(lambda a, b: total_variation(a, b, xp=lib.xp), one, other)
    assert np.asarray(got).tolist() == [[0], [1], [0.25]]


def test_the_gap_between_soft_and_hard_closes_as_gamma_falls() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 2, 7)), rng.normal(size=(50, 2, 8))
    hard = comet_gate(*scores, gamma=1.0, hard=True).weights
    gaps = [
        np.mean(total_variation(comet_gate(*scores, gamma=gamma).weights, hard))
        for gamma in (10.0, 1.0, 0.1, 1e-6)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == 0
