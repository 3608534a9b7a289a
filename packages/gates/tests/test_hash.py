"""Hash routing is uniform or balanced, and the same everywhere."""

import itertools
import math
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import balanced_hash_table, hash_gate, hash_table
from moe_gates._hash import _splitmix64

XP = array_api_compat.numpy
PINNED = [6, 0, 14, 9, 7, 3, 7, 5, 2, 6, 1, 15]


def test_the_generator_is_splitmix64() -> None:
    # The first numbers of the published generator for this seed.
    assert [_splitmix64(1234567, index) for index in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_tables_are_the_same_on_every_library(lib: Any) -> None:
    table = hash_table(12, num_experts=16, seed=7, xp=lib.xp)
    assert table.dtype == lib.xp.int32
    assert np.asarray(table).tolist() == PINNED


def test_integers_of_numpy_give_the_same_tables() -> None:
    given: dict[str, Any] = {"num_experts": np.int64(16), "seed": np.int64(7)}
    assert hash_table(12, **given, xp=XP).tolist() == PINNED
    counts: list[float] = [200, 100, 3, 2, 1, 0]
    for dtype in (np.uint8, np.int64):
        numbers = [dtype(count) for count in counts]
        assert balanced_hash_table(numbers, num_experts=2, xp=XP).tolist() == balanced(counts, 2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_ids_may_be_integers_of_any_width(lib: Any, dtype: str) -> None:
    ids, table = (np.asarray(each).astype(dtype) for each in ([0, 2], [1, 0, 1]))
    weights = hash_gate(
        lib.asarray(ids), lib.asarray(table), num_experts=2, dtype=lib.xp.float32, xp=lib.xp
    )
    np.testing.assert_array_equal(np.asarray(weights), [[0, 1], [0, 1]])


def test_a_longer_table_starts_with_the_shorter_one() -> None:
    long, short = (hash_table(n, num_experts=5, seed=3, xp=XP) for n in (50, 20))
    np.testing.assert_array_equal(long[:20], short)


def test_seeds_give_different_tables() -> None:
    one, other = (hash_table(100, num_experts=5, seed=seed, xp=XP) for seed in (0, 1))
    assert np.any(one != other)


def test_experts_are_drawn_evenly() -> None:
    counts = np.bincount(hash_table(16_000, num_experts=16, seed=0, xp=XP), minlength=16)
    # Chi-squared with 15 degrees of freedom: above 37.7 once in a thousand seeds.
    assert np.sum((counts - 1000) ** 2 / 1000) < 37.7


def test_an_empty_table_is_a_table() -> None:
    assert hash_table(0, num_experts=2, seed=0, xp=XP).shape == (0,)


def test_rows_are_one_hot_at_the_expert_of_the_id(lib: Any) -> None:
    ids, table = np.asarray([[0, 3], [2, 2]]), np.asarray([4, 0, 2, 1])
    weights = lib.run(
        lambda i, t: hash_gate(i, t, num_experts=5, dtype=lib.xp.float32, xp=lib.xp), ids, table
    )
    assert weights.dtype == lib.xp.float32
    np.testing.assert_array_equal(np.asarray(weights), np.eye(5)[table[ids]])


def test_no_ids_give_no_rows(lib: Any) -> None:
    ids, table = np.zeros((0, 2), dtype=np.int64), np.asarray([0, 1])
    weights = lib.run(
        lambda i, t: hash_gate(i, t, num_experts=2, dtype=lib.xp.float64, xp=lib.xp), ids, table
    )
    assert weights.shape == (0, 2, 2)


counts_of_ids = st.lists(st.integers(0, 9), max_size=30)


def balanced(counts: list[float], num_experts: int) -> list[int]:
    """Look at every expert for every id."""
    loads, table = [0.0] * num_experts, [0] * len(counts)
    left = list(range(len(counts)))
    while left:
        index = max(left, key=lambda i: (counts[i], -i))
        if counts[index] > 0:
            table[index] = loads.index(min(loads))
            loads[table[index]] += counts[index]
        else:
            table[index] = (len(counts) - len(left)) % num_experts
        left.remove(index)
    return table


@given(counts=counts_of_ids, num_experts=st.integers(2, 6))
def test_the_next_most_frequent_id_goes_to_the_least_load(
    counts: list[int], num_experts: int
) -> None:
    table = balanced_hash_table(counts, num_experts=num_experts, xp=XP)
    assert table.dtype == np.int32
    assert table.tolist() == balanced(list(counts), num_experts)


@given(counts=st.lists(st.integers(0, 9), max_size=7), num_experts=st.integers(2, 3))
def test_no_table_has_a_much_smaller_largest_load(counts: list[int], num_experts: int) -> None:
    def largest_load(table: Any) -> float:
        return float(np.max(np.bincount(table, counts, num_experts))) if counts else 0.0

    tables = itertools.product(range(num_experts), repeat=len(counts))
    least = min(largest_load(np.asarray(table, dtype=np.int64)) for table in tables)
    got = largest_load(balanced_hash_table(counts, num_experts=num_experts, xp=XP))
    assert got <= (4 / 3 - 1 / (3 * num_experts)) * least + 1e-9


def test_balanced_tables_are_the_same_on_every_library(lib: Any) -> None:
    counts = np.asarray([5, 3, 8, 1, 1, 4, 0, 9, 2, 0, 0, 0])
    expected = balanced(counts.tolist(), 3)
    if lib.name != "array_api_strict":  # its arrays have no `tolist`
        expected_from_array = balanced_hash_table(lib.asarray(counts), num_experts=3, xp=lib.xp)
        assert np.asarray(expected_from_array).tolist() == expected
    table = balanced_hash_table(counts.tolist(), num_experts=3, xp=lib.xp)
    assert table.dtype == lib.xp.int32
    assert np.asarray(table).tolist() == expected


def test_frequencies_are_counts() -> None:
    counts = np.random.default_rng(0).zipf(1.5, 200)
    by_count, by_share = (
        balanced_hash_table(numbers, num_experts=8, xp=XP)
        for numbers in (counts, counts / 2 ** math.ceil(math.log2(counts.sum())))
    )
    np.testing.assert_array_equal(by_count, by_share)


def test_ids_that_do_not_occur_are_dealt_out_in_turn() -> None:
    table = balanced_hash_table([0] * 10 + [7], num_experts=5, xp=XP)
    assert np.bincount(table, minlength=5).tolist() == [3, 2, 2, 2, 2]


@pytest.mark.parametrize("empty", [[], np.zeros(0)])
def test_no_counts_are_an_empty_table(empty: Any) -> None:
    assert balanced_hash_table(empty, num_experts=2, xp=XP).shape == (0,)
