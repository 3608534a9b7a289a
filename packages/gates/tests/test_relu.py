"""ReLU routing keeps positive scores, at most k."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import count_nonzero, relu_gate

values = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e4, 1e4))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(1, 17)))
    scores = draw(npst.arrays(np.float64, shape, elements=values))
    return scores, draw(st.integers(1, shape[-1]))


def naive_row(row: list[float], k: int) -> list[float]:
    first = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:k]
    return [max(score, 0.0) if expert in first else 0.0 for expert, score in enumerate(row)]


@given(problem=problems())
def test_equals_a_sort_of_each_row_to_the_bit(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = relu_gate(eager_lib.asarray(scores), k=k)
    expected = np.reshape([naive_row(row, k) for row in scores.tolist()], scores.shape)
    np.testing.assert_array_equal(np.asarray(got), expected)
    assert np.all(np.asarray(count_nonzero(got)) <= k)


@pytest.mark.parametrize("k", [1, 4, 31])
@pytest.mark.parametrize("num_experts", [31, 64, 1000])
def test_all_libraries_agree(lib: Any, num_experts: int, k: int) -> None:
    scores = np.random.default_rng(k).normal(size=(5, num_experts))
    got = np.asarray(lib.run(lambda s: relu_gate(s, k=k, xp=lib.xp), scores))
    np.testing.assert_array_equal(got, [naive_row(row, k) for row in scores.tolist()])


@given(problem=problems())
def test_without_a_cap_it_is_the_positive_part(problem: Any) -> None:
    scores, _ = problem
    np.testing.assert_array_equal(
        relu_gate(scores, k=scores.shape[-1]), np.where(scores > 0, scores, 0)
    )


def test_a_row_without_a_positive_score_is_all_0(lib: Any) -> None:
    scores = np.asarray([[-1.0, 0.0, -2.0], [-np.inf, 3.0, 4.0]])
    got = lib.run(lambda s: relu_gate(s, k=1, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(got), [[0, 0, 0], [0, 0, 4]])
