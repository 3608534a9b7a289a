"""Top-k sparsemax is the nearest sparse point of the simplex."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import top_k_sparsemax_gate
from moe_gates.testing import assert_on_simplex

values = st.one_of(st.integers(-2, 2).map(lambda n: n / 2), st.floats(-2, 2), st.floats(-1e4, 1e4))


@st.composite
def problems(draw: st.DrawFn, most_experts: int = 17) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, most_experts)))
    scores = draw(npst.arrays(np.float64, shape, elements=values))
    return scores, draw(st.integers(1, shape[-1]))


def nearest(row: Any, k: int) -> Any:
    """Nearest point of any face of the simplex with k corners at most, by trying all."""
    best, distance = None, np.inf
    for size in range(1, k + 1):
        for corners in map(list, itertools.combinations(range(row.size), size)):
            point = np.zeros_like(row)
            point[corners] = row[corners] - (row[corners].sum() - 1) / size
            if np.all(point >= 0) and np.sum((point - row) ** 2) < distance:
                best, distance = point, np.sum((point - row) ** 2)
    return best


def sparsemax(row: Any, k: int) -> Any:
    """Martins and Astudillo, algorithm 1, on the first k of a stable sort."""
    order = np.argsort(-row, kind="stable")[:k]
    z = row[order]
    fits = 1 + np.arange(1, k + 1) * z > np.cumsum(z)
    size = np.max(np.nonzero(fits)[0]) + 1
    weights = np.zeros_like(row)
    weights[order] = np.maximum(z - (z[:size].sum() - 1) / size, 0)
    return weights


@given(problem=problems(most_experts=6))
def test_no_sparse_point_is_nearer(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(top_k_sparsemax_gate(eager_lib.asarray(scores), k=k))
    for row, weights in zip(scores, got, strict=True):
        distance, least = (np.linalg.norm(point - row) for point in (weights, nearest(row, k)))
        # Scores of 1e4 leave 12 digits to both.
        assert distance <= least + 1e-11


@given(problem=problems())
def test_equals_the_published_algorithm_on_the_k_largest(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(top_k_sparsemax_gate(eager_lib.asarray(scores), k=k))
    expected = np.reshape([sparsemax(row, k) for row in scores], scores.shape)
    np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("k", [1, 2, 4, 31])
@pytest.mark.parametrize("num_experts", [31, 64, 1000])
def test_all_libraries_agree(lib: Any, num_experts: int, k: int) -> None:
    scores = np.random.default_rng(k).normal(size=(2, 5, num_experts), scale=0.01)
    got = np.asarray(lib.run(lambda s: top_k_sparsemax_gate(s, k=k, xp=lib.xp), scores))
    expected = [[sparsemax(row, k) for row in rows] for rows in scores]
    np.testing.assert_allclose(got, expected, atol=1e-14)
    assert np.count_nonzero(got, axis=-1).max() == k


@given(problem=problems())
def test_float32_rows_are_k_sparse_points_of_the_simplex(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    scores = eager_lib.asarray(scores.astype(np.float32))
    assert_on_simplex(top_k_sparsemax_gate(scores, k=k), k=k)


def test_a_tie_keeps_the_lower_index(lib: Any) -> None:
    got = lib.run(lambda s: top_k_sparsemax_gate(s, k=2, xp=lib.xp), np.ones((3, 5)))
    np.testing.assert_allclose(np.asarray(got), np.tile([0.5, 0.5, 0, 0, 0], (3, 1)))


def test_minus_infinity_forbids_an_expert(lib: Any) -> None:
    scores = np.asarray([[-np.inf, 1.0, -np.inf, 1.0], [0.0, -np.inf, -np.inf, -np.inf]])
    got = lib.run(lambda s: top_k_sparsemax_gate(s, k=3, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 0.5, 0, 0.5], [1, 0, 0, 0]])
