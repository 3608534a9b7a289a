"""Relabelling moves weights and changes nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import comet_gate, mix, normalize, permute


def matrix_of(permutation: Any) -> Any:
    return np.eye(permutation.shape[-1])[permutation]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw slot weights, and a permutation that is shared or one a slot."""
    rows, slots, experts = draw(st.tuples(*(st.integers(low, 5) for low in (0, 1, 1))))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = (experts,) if draw(st.booleans()) else (slots, experts)
    order = rng.permuted(np.broadcast_to(np.arange(experts), shape), axis=-1)
    return rng.random((rows, slots, experts)), order


@given(problem=problems())
def test_permute_multiplies_by_the_matrix_to_the_bit(eager_lib: Any, problem: Any) -> None:
    weights, order = problem
    got = permute(eager_lib.asarray(weights), eager_lib.asarray(order))
    expected = np.squeeze(weights[..., None, :] @ matrix_of(order), -2)
    np.testing.assert_array_equal(np.asarray(got), expected)
    expected_entries = np.empty_like(weights)
    positions = np.broadcast_to(order, weights.shape)
    np.put_along_axis(expected_entries, positions, weights, -1)
    np.testing.assert_array_equal(np.asarray(got), expected_entries)


@given(problem=problems())
def test_mix_with_a_permutation_matrix_is_permute(eager_lib: Any, problem: Any) -> None:
    weights, order = (eager_lib.asarray(array) for array in problem)
    mixed = mix(weights, eager_lib.asarray(matrix_of(problem[1])))
    np.testing.assert_array_equal(np.asarray(mixed), np.asarray(permute(weights, order)))


@given(problem=problems())
def test_the_inverse_permutation_undoes(problem: Any) -> None:
    weights, order = problem
    back = permute(permute(weights, order), np.argsort(order, axis=-1))
    np.testing.assert_array_equal(back, weights)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_a_relabelling_one_a_slot_acts_on_slots(lib: Any, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weights, matrices = rng.random((*batch, 4, 6)), rng.random((4, 6, 6))
    order = rng.permuted(np.tile(np.arange(6), (4, 1)), axis=-1)
    mixed = lib.run(lambda w, m: mix(w, m, xp=lib.xp), weights, matrices)
    expected = np.einsum("...ke,kef->...kf", weights, matrices)
    np.testing.assert_allclose(np.asarray(mixed), expected, rtol=1e-14)
    permuted = lib.run(lambda w, p: permute(w, p, xp=lib.xp), weights, order)
    expected = np.einsum("...ke,kef->...kf", weights, matrix_of(order))
    np.testing.assert_array_equal(np.asarray(permuted), expected)


def test_the_number_of_axes_says_whether_it_is_shared() -> None:
    # As many rows as experts: only the relabelling's own axes can tell.
    weights, order = np.arange(9.0).reshape(3, 3), np.asarray([1, 2, 0])
    shared = permute(weights, order)
    np.testing.assert_array_equal(shared, weights[:, [2, 0, 1]])
    by_row = permute(weights, np.stack([order, [0, 1, 2], [0, 1, 2]]))
    np.testing.assert_array_equal(by_row[1:], weights[1:])
    np.testing.assert_array_equal(by_row[0], shared[0])


def test_permuting_slots_by_one_permutation_permutes_the_gate(lib: Any) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 2, 4)), rng.normal(size=(7, 2, 5))
    gate = lib.run(lambda s, a: comet_gate(s, a, gamma=3.0, xp=lib.xp), *scores)
    order = lib.asarray(np.asarray([3, 0, 4, 1, 2]))
    slots = lib.xp.sum(permute(gate.slot_weights, order, xp=lib.xp), axis=-2)
    whole = permute(gate.weights, order, xp=lib.xp)
    np.testing.assert_allclose(np.asarray(slots), np.asarray(whole), rtol=1e-14)


def test_normalize_divides_by_the_sum_and_keeps_zero_rows(lib: Any) -> None:
    weights = np.asarray([[2.0, 6.0], [0.0, 0.0], [0.0, 1e-300]])
    got = np.asarray(lib.run(lambda w: normalize(w, xp=lib.xp), weights))
    # XLA multiplies by a reciprocal: one rounding more.
    np.testing.assert_allclose(got, [[0.25, 0.75], [0.0, 0.0], [0.0, 1.0]], rtol=4e-16)


def test_half_precision_stays_half_precision() -> None:
    weights = np.asarray([[0.25, 0.75]], dtype=np.float16)
    swap = np.asarray([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    assert mix(weights, swap).dtype == np.float16
    assert normalize(weights).dtype == np.float16
    assert permute(weights, np.asarray([1, 0])).dtype == np.float16
