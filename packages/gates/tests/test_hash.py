"""Hash routing is uniform, and the same everywhere."""

from typing import Any

import array_api_compat.numpy
import numpy as np

from moe_gates import hash_gate, hash_table
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
