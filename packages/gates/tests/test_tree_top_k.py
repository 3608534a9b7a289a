"""Tree top-k against a walk node by node, and exactly k experts at all times."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import count_nonzero, tree_top_k_gate
from moe_gates.testing import assert_on_simplex

NUM_EXPERTS = [*range(2, 18), 31, 64]


def log_sigmoid(score: float) -> float:
    return -math.log1p(math.exp(-score)) if score > 0 else score - math.log1p(math.exp(score))


def walk(splits: Any, *, node: int = 0, reached: float = 0.0) -> Iterator[float]:
    """Yield the logarithm of the probability of each leaf, depth first, node by node."""
    if node >= len(splits):
        yield reached
        return
    left, right = log_sigmoid(splits[node]), log_sigmoid(-splits[node])
    yield from walk(splits, node=2 * node + 1, reached=reached + left)
    yield from walk(splits, node=2 * node + 2, reached=reached + right)


def naive_row(splits: Any, leaves: Any, k: int) -> Any:
    """Slot weights and probabilities of one row."""
    logs = np.asarray([list(walk(tree)) for tree in splits.tolist()])
    joint = logs + leaves
    scores = [
        max(column) + math.log(math.fsum(math.exp(each - max(column)) for each in column))
        for column in joint.T.tolist()
    ]
    kept = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))[:k]
    exps = [math.exp(score - max(scores)) if j in kept else 0.0 for j, score in enumerate(scores)]
    weights = np.asarray(exps) / math.fsum(exps)
    return weights * np.exp(joint - np.asarray(scores)), np.exp(logs)


def draw_scores(num_experts: int, num_slots: int, rows: int = 9) -> tuple[Any, Any]:
    rng = np.random.default_rng(num_experts * 10 + num_slots)
    splits = rng.normal(size=(rows, num_slots, num_experts - 1), scale=2)
    return splits, rng.normal(size=(rows, num_slots, num_experts), scale=3)


@st.composite
def problems(draw: st.DrawFn, largest: float = 1e4) -> tuple[Any, Any, int]:
    num_experts, num_slots = draw(st.sampled_from(NUM_EXPERTS)), draw(st.integers(1, 4))
    rows = draw(st.integers(0, 3))
    score = st.one_of(st.sampled_from([-largest, 0.0, largest]), st.floats(-largest, largest))
    splits = draw(npst.arrays(np.float64, (rows, num_slots, num_experts - 1), elements=score))
    leaves = draw(npst.arrays(np.float64, (rows, num_slots, num_experts), elements=score))
    return splits, leaves, draw(st.integers(1, num_experts))


@pytest.mark.parametrize("num_slots", [1, 3])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_equals_a_walk_node_by_node(lib: Any, num_experts: int, num_slots: int) -> None:
    splits, leaves = draw_scores(num_experts, num_slots)
    gate = lib.run(lambda s, a: tree_top_k_gate(s, a, k=2, xp=lib.xp), splits, leaves)
    rows = [naive_row(s, a, 2) for s, a in zip(splits, leaves, strict=True)]
    slot_weights = np.stack([weights for weights, _ in rows])
    np.testing.assert_allclose(np.asarray(gate.weights), slot_weights.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(gate.slot_weights), slot_weights, rtol=1e-12)
    reached = np.stack([reached for _, reached in rows])
    np.testing.assert_allclose(np.asarray(gate.slot_probabilities), reached, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(problem=problems())
def test_exactly_k_weights_are_not_0_with_scores_up_to_1e4(
    eager_lib: Any, dtype: Any, problem: Any
) -> None:
    if eager_lib.name == "array_api_strict" and dtype == np.float16:
        pytest.skip("the standard has no float16")
    splits, leaves, k = problem
    arrays = [eager_lib.asarray(scores.astype(dtype)) for scores in (splits, leaves)]
    gate = tree_top_k_gate(*arrays, k=k)
    weights = np.asarray(gate.weights)
    assert np.all(np.asarray(count_nonzero(gate.weights)) == k)
    assert_on_simplex(gate.weights, k=k)
    assert np.all(weights[weights > 0] >= np.finfo(dtype).smallest_normal)
    slots = np.sum(np.asarray(gate.slot_weights).astype(np.float64), axis=-2)
    np.testing.assert_allclose(slots, weights, atol=4 * np.finfo(dtype).eps)


@given(problem=problems())
def test_equals_the_walk_with_scores_up_to_1e4(problem: Any) -> None:
    splits, leaves, k = problem
    gate = tree_top_k_gate(splits, leaves, k=k)
    for row in range(len(splits)):
        slot_weights, _ = naive_row(splits[row], leaves[row], k)
        ordered = np.sort(gate.weights[row])
        # A tie of the walk may be none here: compare sorted. Sums of 1e4: 11 digits are left.
        np.testing.assert_allclose(ordered, np.sort(slot_weights.sum(axis=0)), atol=1e-10)


def test_a_tie_keeps_the_lower_index(lib: Any) -> None:
    zeros = np.zeros((3, 2, 8))
    gate = lib.run(lambda s, a: tree_top_k_gate(s, a, k=3, xp=lib.xp), zeros[..., 1:], zeros)
    expected = np.where(np.arange(8) < 3, 1 / 3, 0)
    np.testing.assert_allclose(np.asarray(gate.weights), np.tile(expected, (3, 1)), rtol=1e-15)


def test_no_rows_and_no_batch_are_batches() -> None:
    splits, leaves = draw_scores(5, 2)
    assert tree_top_k_gate(splits[:0], leaves[:0], k=2).weights.shape == (0, 5)
    alone, batched = (
        tree_top_k_gate(splits[0], leaves[0], k=2),
        tree_top_k_gate(splits, leaves, k=2),
    )
    np.testing.assert_array_equal(alone.weights, batched.weights[0])
