"""COMET against a walk node by node, and its guarantees."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import comet_gate, leaf_order
from moe_gates.testing import assert_on_simplex

NUM_EXPERTS = [*range(2, 18), 31, 64, 1000]


def step(t: float, gamma: float) -> tuple[float, float]:
    u = min(max(t / gamma + 0.5, 0.0), 1.0)
    r = 1 - u
    return u * u * (3 - 2 * u), r * r * (3 - 2 * r)


def walk(splits: Any, gamma: float, *, node: int = 0, reached: float = 1.0) -> Iterator[float]:
    """Yield the probability of each leaf, depth first, one node at a time."""
    if node >= len(splits):
        yield reached
        return
    left, right = step(splits[node], gamma)
    yield from walk(splits, gamma, node=2 * node + 1, reached=reached * left)
    yield from walk(splits, gamma, node=2 * node + 2, reached=reached * right)


def naive_row(splits: Any, leaves: Any, gamma: float) -> tuple[Any, Any]:
    reached = np.asarray([list(walk(tree, gamma)) for tree in splits.tolist()])
    scores = [
        a + math.log(v) if v > 0 else -math.inf
        for v, a in zip(reached.flat, leaves.flat, strict=True)
    ]
    masses = [math.exp(score - max(scores)) for score in scores]
    return np.reshape(masses, reached.shape) / math.fsum(masses), reached


def naive(splits: Any, leaves: Any, gamma: float) -> tuple[Any, Any]:
    rows = [naive_row(s, a, gamma) for s, a in zip(splits, leaves, strict=True)]
    return np.stack([weights for weights, _ in rows]), np.stack([reached for _, reached in rows])


def draw_scores(num_experts: int, num_slots: int, rows: int = 9) -> tuple[Any, Any]:
    rng = np.random.default_rng(num_experts * 10 + num_slots)
    splits = rng.normal(size=(rows, num_slots, num_experts - 1))
    return splits, rng.normal(size=(rows, num_slots, num_experts), scale=3)


@st.composite
def problems(draw: st.DrawFn, largest: float = 1e4) -> tuple[Any, Any, float]:
    num_experts, num_slots = draw(st.sampled_from(NUM_EXPERTS)), draw(st.integers(1, 4))
    rows, gamma = draw(st.integers(0, 3)), draw(st.sampled_from([0.01, 1.0, 10.0]))
    # Most splits inside the band or on its edge, where the care is needed.
    split = st.one_of(st.floats(-gamma, gamma), st.sampled_from([-gamma / 2, 0.0, gamma / 2]))
    splits = draw(npst.arrays(np.float64, (rows, num_slots, num_experts - 1), elements=split))
    leaf = st.floats(-largest, largest)
    return (
        splits,
        draw(npst.arrays(np.float64, (rows, num_slots, num_experts), elements=leaf)),
        gamma,
    )


@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_equals_a_walk_node_by_node(lib: Any, num_experts: int, num_slots: int) -> None:
    splits, leaves = draw_scores(num_experts, num_slots)
    gate = lib.run(lambda s, a: comet_gate(s, a, gamma=2.0, xp=lib.xp), splits, leaves)
    slot_weights, reached = naive(splits, leaves, 2.0)
    np.testing.assert_allclose(np.asarray(gate.weights), slot_weights.sum(axis=1), atol=1e-14)
    np.testing.assert_allclose(np.asarray(gate.slot_weights), slot_weights, atol=1e-14)
    np.testing.assert_allclose(np.asarray(gate.slot_probabilities), reached, atol=1e-15)


@given(problem=problems())
def test_equals_the_walk_with_scores_up_to_1e4(eager_lib: Any, problem: Any) -> None:
    splits, leaves, gamma = problem
    gate = comet_gate(eager_lib.asarray(splits), eager_lib.asarray(leaves), gamma=gamma)
    if len(splits):
        slot_weights, _ = naive(splits, leaves, gamma)
        # The oracle adds log(v) to scores of 1e4: 12 digits are left.
        np.testing.assert_allclose(np.asarray(gate.slot_weights), slot_weights, atol=1e-10)
    assert_on_simplex(gate.weights)


@given(problem=problems())
def test_float32_rows_are_on_the_simplex(eager_lib: Any, problem: Any) -> None:
    splits, leaves, gamma = problem
    arrays = [eager_lib.asarray(scores.astype(np.float32)) for scores in (splits, leaves)]
    gate = comet_gate(*arrays, gamma=gamma)
    assert_on_simplex(gate.weights)
    np.testing.assert_allclose(np.sum(np.asarray(gate.slot_probabilities), -1), 1, rtol=1e-6)


@given(problem=problems())
def test_hard_rows_have_at_most_one_expert_a_slot(eager_lib: Any, problem: Any) -> None:
    splits, leaves, gamma = problem
    arrays = [eager_lib.asarray(scores) for scores in (splits, leaves)]
    gate = comet_gate(*arrays, gamma=gamma, hard=True)
    _, num_slots, num_experts = leaves.shape
    assert_on_simplex(gate.weights, k=min(num_slots, num_experts))
    assert set(np.asarray(gate.slot_probabilities).flat) <= {0.0, 1.0}


@given(problem=problems())
def test_hard_is_what_soft_becomes_outside_the_band(problem: Any) -> None:
    splits, leaves, gamma = problem
    away = np.where(splits >= 0, splits + gamma, splits - gamma)
    soft, hard = (comet_gate(away, leaves, gamma=gamma, hard=hard) for hard in (False, True))
    for one, other in zip(soft, hard, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_experts", [2, 5, 8])
def test_a_split_of_exactly_0_goes_left_when_hard(lib: Any, num_experts: int) -> None:
    zeros = np.zeros((1, 2, num_experts))
    gate = lib.run(
        lambda s, a: comet_gate(s, a, gamma=1.0, hard=True, xp=lib.xp), zeros[..., 1:], zeros
    )
    np.testing.assert_array_equal(np.asarray(gate.weights), [[1.0] + [0.0] * (num_experts - 1)])


@pytest.mark.parametrize("num_experts", [2, 4, 64])
def test_equal_scores_give_equal_weights(lib: Any, num_experts: int) -> None:
    zeros = np.zeros((3, num_experts, num_experts))  # as many slots as experts
    gate = lib.run(lambda s, a: comet_gate(s, a, gamma=1.0, xp=lib.xp), zeros[..., 1:], zeros + 7)
    np.testing.assert_allclose(np.asarray(gate.weights), 1 / num_experts, rtol=1e-15)


def test_an_unreached_leaf_with_the_largest_score_gets_nothing(lib: Any) -> None:
    splits, leaves = np.asarray([[1.0]]), np.asarray([[-1e4, 1e4]])
    gate = lib.run(lambda s, a: comet_gate(s, a, gamma=1.0, xp=lib.xp), splits, leaves)
    np.testing.assert_array_equal(np.asarray(gate.weights), [1, 0])


def test_a_barely_reached_leaf_with_the_largest_score_does_not_underflow(lib: Any) -> None:
    # Three splits at the edge: v = 3e-38. With max(a) as the shift the sum underflows.
    edge = np.float32(-0.5 + 2.0**-21)
    splits = np.full((1, 7), edge, dtype=np.float32)
    leaves = np.asarray([[80.0] + [0.0] * 7], dtype=np.float32)
    gate = lib.run(lambda s, a: comet_gate(s, a, gamma=1.0, xp=lib.xp), splits, leaves)
    expected, _ = naive(splits[None].astype(np.float64), leaves[None].astype(np.float64), 1.0)
    np.testing.assert_allclose(np.asarray(gate.weights), expected[0, 0], rtol=1e-5, atol=1e-30)


def test_no_rows_and_no_batch_are_batches() -> None:
    splits, leaves = draw_scores(5, 2)
    assert comet_gate(splits[:0], leaves[:0], gamma=1.0).weights.shape == (0, 5)
    alone = comet_gate(splits[0], leaves[0], gamma=1.0)
    np.testing.assert_array_equal(alone.weights, comet_gate(splits, leaves, gamma=1.0).weights[0])


@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_leaf_order_is_the_heap_read_depth_first(num_experts: int) -> None:
    def leaves(node: int) -> list[int]:
        if node >= num_experts - 1:
            return [node - (num_experts - 1)]
        return leaves(2 * node + 1) + leaves(2 * node + 2)

    assert list(leaf_order(num_experts)) == leaves(0)
