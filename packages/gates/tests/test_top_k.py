"""Top-k keeps k, by the rule it states."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import count_nonzero, top_k_gate
from moe_gates.testing import assert_on_simplex

# Few distinct values, so that ties are the rule.
values = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e4, 1e4))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 17)))
    scores = draw(npst.arrays(np.float64, shape, elements=values))
    return scores, draw(st.integers(1, shape[-1]))


def naive(scores: Any, k: int) -> Any:
    kept = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    masked = np.full_like(scores, -np.inf)
    np.put_along_axis(masked, kept, np.take_along_axis(scores, kept, -1), -1)
    exps = np.exp(masked - masked.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


@given(problem=problems())
def test_rows_are_k_sparse_points_of_the_simplex(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    assert_on_simplex(top_k_gate(eager_lib.asarray(scores), k=k), k=k)


@given(problem=problems())
def test_equals_a_softmax_over_the_first_k_of_a_stable_sort(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(top_k_gate(eager_lib.asarray(scores), k=k))
    np.testing.assert_allclose(got, naive(scores, k), atol=1e-15)


@given(problem=problems(), data=st.data())
def test_relabelling_scores_without_ties_relabels_weights(
    problem: Any, data: st.DataObject
) -> None:
    scores, k = problem
    untied = scores + np.linspace(0, 0.5, scores.shape[-1]) * (scores == np.round(scores))
    if untied.size and min(np.unique(row).size for row in untied) < untied.shape[-1]:
        return
    order = data.draw(st.permutations(range(scores.shape[-1])))
    moved = top_k_gate(untied[..., order], k=k)
    np.testing.assert_allclose(moved, top_k_gate(untied, k=k)[..., order], atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_a_tie_keeps_the_lower_index(lib: Any, k: int) -> None:
    got = np.asarray(lib.run(lambda s: top_k_gate(s, k=k, xp=lib.xp), np.ones((3, 8))))
    expected = np.where(np.arange(8) < k, 1 / k, 0)
    np.testing.assert_allclose(got, np.tile(expected, (3, 1)), rtol=1e-15)


@pytest.mark.parametrize("k", [1, 3, 16])
def test_all_libraries_agree(lib: Any, k: int) -> None:
    scores = np.random.default_rng(k).normal(size=(2, 7, 16))
    got = np.asarray(lib.run(lambda s: top_k_gate(s, k=k, xp=lib.xp), scores))
    np.testing.assert_allclose(got, naive(scores, k), atol=1e-15)


def test_minus_infinity_forbids_an_expert(lib: Any) -> None:
    scores = np.asarray([[-np.inf, 1.0, -np.inf, 1.0], [0.0, -np.inf, -np.inf, -np.inf]])
    got = lib.run(lambda s: top_k_gate(s, k=3, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 0.5, 0, 0.5], [1, 0, 0, 0]])
    assert np.asarray(count_nonzero(got, xp=lib.xp)).tolist() == [2, 1]
