"""Softmax is the dense gate, whatever the scores."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import softmax_gate, top_k_gate
from moe_gates.testing import assert_on_simplex

scores = npst.arrays(
    np.float64, st.tuples(st.integers(0, 4), st.integers(1, 17)), elements=st.floats(-1e4, 1e4)
)


def naive_row(row: list[float]) -> list[float]:
    exps = [math.exp(score - max(row)) for score in row]
    return [each / math.fsum(exps) for each in exps]


@pytest.mark.parametrize("num_experts", [1, 2, 5, 17, 31, 64, 1000])
def test_equals_its_definition(lib: Any, num_experts: int) -> None:
    rows = np.random.default_rng(num_experts).normal(size=(2, 3, num_experts), scale=3)
    got = lib.run(lambda s: softmax_gate(s, xp=lib.xp), rows)
    expected = [[naive_row(row) for row in batch] for batch in rows.tolist()]
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-13)


@given(rows=scores)
def test_rows_are_on_the_simplex_with_scores_up_to_1e4(eager_lib: Any, rows: Any) -> None:
    got = softmax_gate(eager_lib.asarray(rows))
    assert_on_simplex(got)
    expected = np.reshape([naive_row(row) for row in rows.tolist()], rows.shape)
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-15)


@given(rows=scores)
def test_is_top_k_of_all_experts_to_the_bit(rows: Any) -> None:
    np.testing.assert_array_equal(softmax_gate(rows), top_k_gate(rows, k=rows.shape[-1]))


def test_minus_infinity_forbids_an_expert(lib: Any) -> None:
    got = lib.run(lambda s: softmax_gate(s, xp=lib.xp), np.asarray([1.0, -np.inf, 1.0]))
    np.testing.assert_array_equal(np.asarray(got), [0.5, 0, 0.5])
