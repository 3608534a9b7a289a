"""Pairs and dense weights are two forms of one thing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import SparseWeights, count_nonzero, to_dense, to_sparse
from moe_gates.testing import assert_equals_dense

# Mostly zeros, and ties.
entries = st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5, 0.125, 1e-300])


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(2, 17)))
    weights = draw(npst.arrays(np.float64, shape, elements=entries))
    return weights, draw(st.integers(1, shape[-1]))


def naive(weights: Any, max_nonzero: int) -> list[tuple[list[int], float]]:
    """Keep the largest weights of each row, by sorting; say which, and what is left."""
    answers = []
    for row in weights.tolist():
        ranked = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))
        kept = sorted(ranked[:max_nonzero])
        answers.append((kept, sum(row[expert] for expert in ranked[max_nonzero:])))
    return answers


@given(problem=problems())
def test_keeps_the_largest_and_says_what_it_dropped(eager_lib: Any, problem: Any) -> None:
    weights, max_nonzero = problem
    bounded = to_sparse(eager_lib.asarray(weights), max_nonzero=max_nonzero)
    experts, kept = (np.asarray(array) for array in bounded.sparse)
    expected = naive(weights, max_nonzero)
    assert experts.tolist() == [chosen for chosen, _ in expected]
    np.testing.assert_array_equal(kept, np.take_along_axis(weights, experts, -1))
    left = [dropped for _, dropped in expected]
    np.testing.assert_allclose(np.asarray(bounded.dropped), left, rtol=1e-15)


@given(problem=problems())
def test_drops_exactly_nothing_where_all_fit(eager_lib: Any, problem: Any) -> None:
    weights, max_nonzero = problem
    bounded = to_sparse(eager_lib.asarray(weights), max_nonzero=max_nonzero)
    fits = np.asarray(count_nonzero(weights)) <= max_nonzero
    np.testing.assert_array_equal(np.asarray(bounded.dropped) == 0, fits)


@given(problem=problems())
def test_dense_of_sparse_is_the_same_to_the_bit(eager_lib: Any, problem: Any) -> None:
    weights, _ = problem
    array = eager_lib.asarray(weights)
    bounded = to_sparse(array, max_nonzero=weights.shape[-1])
    assert_equals_dense(bounded.sparse, array)


@pytest.mark.parametrize("max_nonzero", [1, 3, 6])
def test_all_libraries_agree(lib: Any, max_nonzero: int) -> None:
    rng = np.random.default_rng(max_nonzero)
    weights = rng.random((2, 5, 6)) * rng.integers(0, 2, size=(2, 5, 6))
    got = lib.run(lambda w: to_sparse(w, max_nonzero=max_nonzero, xp=lib.xp), weights)
    expected = naive(weights.reshape(10, 6), max_nonzero)
    assert np.asarray(got.sparse.experts).reshape(10, -1).tolist() == [e for e, _ in expected]
    assert got.dropped.shape == (2, 5)


def test_pairs_of_one_expert_add_up(lib: Any) -> None:
    pairs = np.asarray([[2, 0, 2]]), np.asarray([[0.25, 0.5, 0.125]])
    got = lib.run(lambda e, w: to_dense(SparseWeights(e, w), num_experts=4, xp=lib.xp), *pairs)
    assert np.asarray(got).tolist() == [[0.5, 0, 0.375, 0]]


def test_half_precision_sums_what_is_dropped_wide() -> None:
    weights = np.full((1, 4097), 1 / 4096, dtype=np.float16)
    bounded = to_sparse(weights, max_nonzero=1)
    assert bounded.dropped.dtype == bounded.sparse.weights.dtype == np.float16
    np.testing.assert_array_equal(bounded.dropped, 1)
