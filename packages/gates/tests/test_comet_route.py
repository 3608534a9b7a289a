"""The sparse route is the dense hard gate."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import comet_gate, comet_route, count_nonzero, expert_load, to_dense
from moe_gates.testing import assert_equals_dense

NUM_EXPERTS = [*range(2, 18), 31, 64]
DIM = 5


def whole_numbers(num_experts: int, num_slots: int, rows: int = 25, seed: int = 0) -> list[Any]:
    """Draw a problem whose scores are exact in any order of summation, with ties at 0."""
    rng = np.random.default_rng(seed * 1000 + num_experts * 10 + num_slots)
    shapes = [
        (rows, DIM),
        (num_slots, num_experts - 1, DIM),
        (num_slots, num_experts, DIM),
        (num_slots, num_experts - 1),
        (num_slots, num_experts),
    ]
    return [rng.integers(-2, 3, size=shape).astype(np.float64) for shape in shapes]


def scores(problem: list[Any]) -> tuple[Any, Any]:
    rows, splits, leaves, split_bias, leaf_bias = problem
    return (
        np.einsum("td,knd->tkn", rows, splits) + split_bias,
        np.einsum("td,ked->tke", rows, leaves) + leaf_bias,
    )


def naive(problem: list[Any]) -> Any:
    """Walk each tree from the root, one row and one node at a time."""
    rows, splits, leaves, split_bias, leaf_bias = problem
    num_slots, num_experts, _ = leaves.shape
    expert_of_leaf: dict[int, int] = {}

    def number(node: int) -> None:
        if node >= num_experts - 1:
            expert_of_leaf[node] = len(expert_of_leaf)
        else:
            number(2 * node + 1)
            number(2 * node + 2)

    number(0)
    weights = np.zeros((len(rows), num_experts))
    for row, weight in zip(rows, weights, strict=True):
        reached = []
        for slot in range(num_slots):
            node = 0
            while node < num_experts - 1:
                goes_left = row @ splits[slot, node] + split_bias[slot, node] >= 0
                node = 2 * node + (1 if goes_left else 2)
            expert = expert_of_leaf[node]
            reached.append((expert, row @ leaves[slot, expert] + leaf_bias[slot, expert]))
        largest = max(score for _, score in reached)
        total = math.fsum(math.exp(score - largest) for _, score in reached)
        for expert, score in reached:
            weight[expert] += math.exp(score - largest) / total
    return weights


def route(lib: Any, problem: list[Any]) -> Any:
    def run(rows: Any, splits: Any, leaves: Any, split_bias: Any, leaf_bias: Any) -> Any:
        bias = {"split_bias": split_bias, "leaf_bias": leaf_bias}
        return comet_route(rows, splits, leaves, **bias, xp=lib.xp)

    return lib.run(run, *problem)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_equals_the_dense_hard_gate_to_the_bit(
    eager_lib: Any, num_experts: int, num_slots: int
) -> None:
    problem = whole_numbers(num_experts, num_slots)
    pairs = route(eager_lib, problem)
    splits, leaves = (eager_lib.asarray(each) for each in scores(problem))
    dense = comet_gate(splits, leaves, gamma=1.0, hard=True)
    assert_equals_dense(pairs, dense.weights)
    np.testing.assert_allclose(np.asarray(dense.weights), naive(problem), atol=1e-15)


@pytest.mark.parametrize("num_experts", [2, 5, 8, 1000])
def test_equals_the_dense_hard_gate_in_all_libraries(lib: Any, num_experts: int) -> None:
    problem = whole_numbers(num_experts, 3)
    expected = lib.asarray(naive(problem))
    # XLA multiplies by reciprocals and fuses, which rounds otherwise.
    assert_equals_dense(route(lib, problem), expected, tolerance=1e-15, xp=lib.xp)


@given(
    num_experts=st.sampled_from([*NUM_EXPERTS, 1000]),
    num_slots=st.integers(1, 4),
    seed=st.integers(0, 99),
    rows=st.integers(0, 3),
)
def test_equals_a_walk_row_by_row(
    eager_lib: Any, num_experts: int, num_slots: int, seed: int, rows: int
) -> None:
    problem = whole_numbers(num_experts, num_slots, rows, seed)
    expected = eager_lib.asarray(naive(problem))
    assert_equals_dense(route(eager_lib, problem), expected, tolerance=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_dense_hard_gate_to_rounding(eager_lib: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    rows, splits, leaves = (
        rng.normal(size=size).astype(dtype) for size in [(200, 64), (2, 30, 64), (2, 31, 64)]
    )
    pairs = comet_route(*(eager_lib.asarray(array) for array in (rows, splits, leaves)))
    exact = rows.astype(np.float64), splits.astype(np.float64), leaves.astype(np.float64)
    split_scores, leaf_scores = (np.einsum("td,knd->tkn", exact[0], w) for w in exact[1:])
    assert np.min(np.abs(split_scores)) > 1e-5  # no route hangs on rounding
    dense = comet_gate(split_scores, leaf_scores, gamma=1.0, hard=True).weights
    # Scores of about 8 nats, each rounded; a weight changes by its score's error.
    tolerance = 100 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(to_dense(pairs, num_experts=31)), dense, atol=tolerance)


def test_trees_that_meet_are_merged_into_the_first(lib: Any) -> None:
    zeros = np.zeros((2, DIM)), np.zeros((3, 6, DIM)), np.zeros((3, 7, DIM))
    pairs = lib.run(lambda *a: comet_route(*a, xp=lib.xp), *zeros)
    assert np.asarray(pairs.experts).tolist() == [[0, 0, 0]] * 2
    np.testing.assert_allclose(np.asarray(pairs.weights), [[1, 0, 0]] * 2, rtol=1e-15)


def test_rows_do_not_depend_on_their_batch(eager_lib: Any) -> None:
    rng = np.random.default_rng(0)
    rows, splits, leaves = (
        eager_lib.asarray(rng.normal(size=size).astype(np.float32))
        for size in [(33, 40), (2, 12, 40), (2, 13, 40)]
    )
    together = comet_route(rows, splits, leaves)
    for row in range(33):
        alone = comet_route(rows[row : row + 1, :], splits, leaves)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(np.asarray(one)[0], np.asarray(other)[row])


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0)])
def test_any_batch(eager_lib: Any, batch: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).normal(size=(*batch, DIM))
    _, splits, leaves, _, _ = whole_numbers(6, 2)
    pairs = comet_route(*(eager_lib.asarray(array) for array in (rows, splits, leaves)))
    assert pairs.experts.shape == pairs.weights.shape == (*batch, 2)
    flat = comet_route(rows.reshape(-1, DIM), splits, leaves)
    np.testing.assert_array_equal(np.asarray(pairs.experts), flat.experts.reshape(*batch, 2))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_wide(torch_lib: Any, dtype: str) -> None:
    xp = torch_lib.xp
    half = [xp.astype(torch_lib.asarray(a), getattr(xp, dtype)) for a in whole_numbers(9, 2)[:3]]
    pairs, wide = comet_route(*half), comet_route(*(xp.astype(a, xp.float32) for a in half))
    assert pairs.weights.dtype == half[0].dtype
    assert bool(xp.all(pairs.experts == wide.experts))
    assert bool(xp.all(pairs.weights == xp.astype(wide.weights, half[0].dtype)))


def test_memory_does_not_grow_with_the_experts() -> None:
    tracemalloc = pytest.importorskip("tracemalloc")
    peaks = []
    for num_experts in (64, 1024):
        problem = whole_numbers(num_experts, 2, rows=200)[:3]
        comet_route(*problem)
        tracemalloc.start()
        comet_route(*problem)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Rows times slots times dim, a few of them; one (rows, slots, experts) array is 3 MB.
    assert peaks[1] < 1.1 * peaks[0] < 10 * 200 * 2 * DIM * 8


def test_every_row_has_a_pair_and_experts_are_counted_once() -> None:
    problem = whole_numbers(8, 4)
    pairs = comet_route(*problem[:3])
    dense = to_dense(pairs, num_experts=8)
    np.testing.assert_array_equal(count_nonzero(dense), np.count_nonzero(pairs.weights, axis=-1))
    assert np.sum(expert_load(dense)) >= 1


@pytest.mark.parametrize("num_experts", [2, 5, 16])
def test_without_merging_each_tree_keeps_its_part_of_the_dense_gate(num_experts: int) -> None:
    problem = whole_numbers(num_experts, num_slots=3)
    rows, splits, leaves, split_bias, leaf_bias = problem
    bias = {"split_bias": split_bias, "leaf_bias": leaf_bias}
    found = comet_route(rows, splits, leaves, **bias, merge=False)
    slot_weights = comet_gate(*scores(problem), gamma=1.0, hard=True).slot_weights
    assert np.array_equal(found.experts, slot_weights.argmax(-1))
    assert np.array_equal(found.weights, slot_weights.max(-1))
