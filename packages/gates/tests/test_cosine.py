"""Cosine scores see directions only, of vectors of any length."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import cosine_scores

entries = st.one_of(st.floats(-1, 1), st.sampled_from([0.0, 1e-30, -1e30]))


def naive(rows: Any, experts: Any, temperature: float) -> Any:
    scores = np.zeros((len(rows), len(experts)))
    for i, row in enumerate(rows.tolist()):
        for j, expert in enumerate(experts.tolist()):
            # hypot neither overflows nor underflows.
            lengths = [math.hypot(*row), math.hypot(*expert)]
            if min(lengths) > 0:
                pairs = zip(row, expert, strict=True)
                terms = [(a / lengths[0]) * (b / lengths[1]) for a, b in pairs]
                scores[i, j] = math.fsum(terms) / temperature
    return scores


@pytest.mark.parametrize(("num_experts", "num_features"), [(1, 1), (2, 3), (17, 8), (1000, 5)])
def test_equals_its_definition(lib: Any, num_experts: int, num_features: int) -> None:
    rng = np.random.default_rng(num_experts)
    rows, experts = rng.normal(size=(6, num_features)), rng.normal(size=(num_experts, num_features))
    got = lib.run(lambda r, e: cosine_scores(r, e, temperature=0.07, xp=lib.xp), rows, experts)
    np.testing.assert_allclose(np.asarray(got), naive(rows, experts, 0.07), atol=1e-13)


@given(
    rows=npst.arrays(np.float64, st.tuples(st.integers(0, 3), st.just(4)), elements=entries),
    experts=npst.arrays(np.float64, (3, 4), elements=entries),
)
def test_float32_vectors_of_any_length_neither_overflow_nor_underflow(
    eager_lib: Any, rows: Any, experts: Any
) -> None:
    # Below the smallest normal number of float32 nothing is promised.
    rows, experts = (np.where(np.abs(a) < 1e-30, 0, a).astype(np.float32) for a in (rows, experts))
    got = cosine_scores(eager_lib.asarray(rows), eager_lib.asarray(experts), temperature=0.5)
    expected = naive(rows.astype(np.float64), experts.astype(np.float64), 0.5)
    np.testing.assert_allclose(np.asarray(got), expected, atol=2e-6)


def test_a_vector_of_zeros_scores_0(lib: Any) -> None:
    rows, experts = np.asarray([[0.0, 0.0], [1.0, 1.0]]), np.asarray([[0.0, 0.0], [3.0, 3.0]])
    got = lib.run(lambda r, e: cosine_scores(r, e, temperature=1.0, xp=lib.xp), rows, experts)
    np.testing.assert_allclose(np.asarray(got), [[0, 0], [0, 1]], rtol=1e-15)


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_batches_of_any_shape(lib: Any, batch: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    rows, experts = rng.normal(size=(*batch, 4)), rng.normal(size=(5, 4))
    got = lib.run(lambda r, e: cosine_scores(r, e, temperature=1.0, xp=lib.xp), rows, experts)
    expected = np.reshape(naive(np.reshape(rows, (-1, 4)), experts, 1.0), (*batch, 5))
    np.testing.assert_allclose(np.asarray(got), expected, atol=1e-15)


def test_the_temperature_may_be_an_array(lib: Any) -> None:
    rng = np.random.default_rng(0)
    rows, experts = rng.normal(size=(2, 4)), rng.normal(size=(5, 4))
    got = lib.run(
        lambda r, e, t: cosine_scores(r, e, temperature=t, xp=lib.xp),
        rows,
        experts,
        np.asarray(0.25),
    )
    np.testing.assert_allclose(np.asarray(got), naive(rows, experts, 0.25), rtol=1e-13)
