"""Marginals of k-subsets are those of all subsets counted; exactly k are drawn."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import count_nonzero, exact_k_gate, subset_marginals
from moe_gates.testing import assert_on_simplex

values = st.one_of(st.integers(-2, 2).map(float), st.floats(-30, 30), st.floats(-1e4, 1e4))


@st.composite
def problems(draw: st.DrawFn, most_experts: int = 8) -> tuple[Any, int]:
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, most_experts)))
    scores = draw(npst.arrays(np.float64, shape, elements=values))
    return scores, draw(st.integers(1, shape[-1]))


def subsets(num_experts: int, k: int) -> Any:
    """One row for each subset, 1 for the experts in it."""
    rows = itertools.combinations(range(num_experts), k)
    return np.asarray([np.isin(np.arange(num_experts), row) for row in rows], dtype=np.float64)


def chances(row: Any, k: int) -> Any:
    totals = np.asarray([row[chosen > 0].sum() for chosen in subsets(row.size, k)])
    exps = np.exp(totals - totals.max())
    return exps / exps.sum()


def enumerated(row: Any, k: int) -> Any:
    return chances(row, k) @ subsets(row.size, k)


def one_by_one(row: Any, k: int) -> Any:
    """Marginals by the polynomial of all other experts, for scores of moderate size."""
    odds = np.exp(row - np.sort(row)[-k])
    polynomials = np.tile(np.eye(k)[0], (row.size, 1))  # of all experts but the one of the row
    for expert, factor in enumerate(odds):
        factors = np.where(np.arange(row.size) == expert, 0, factor)
        polynomials[:, 1:] += factors[:, None] * polynomials[:, :-1]
    marginals = odds * polynomials[:, -1]
    return marginals * k / marginals.sum()


@given(problem=problems())
def test_marginals_equal_those_of_all_subsets(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = np.asarray(subset_marginals(eager_lib.asarray(scores), k=k))
    expected = np.reshape([enumerated(row, k) for row in scores], scores.shape)
    # The oracle adds scores of 1e4: 11 digits are left.
    np.testing.assert_allclose(got, expected, atol=1e-11)


@given(problem=problems())
def test_float32_marginals_are_exact_to_a_few_roundings_of_each(
    eager_lib: Any, problem: Any
) -> None:
    # Scores that the oracle adds without rounding, on both sides of the k-th.
    scores, k = np.round(problem[0] * 8) / 8, problem[1]
    got = np.asarray(subset_marginals(eager_lib.asarray(scores.astype(np.float32)), k=k))
    assert got.dtype == np.float32
    expected: Any = np.reshape([enumerated(row, k) for row in scores], scores.shape)
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(got.sum(axis=-1), k, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("num_experts", [5, 8, 17, 64, 1000])
def test_marginals_of_many_experts(lib: Any, num_experts: int, k: int) -> None:
    scores = np.random.default_rng(num_experts).normal(size=(2, num_experts), scale=3)
    got = lib.run(lambda s: subset_marginals(s, k=k, xp=lib.xp), scores)
    expected = [one_by_one(row, k) for row in scores]
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-12)


@given(problem=problems(most_experts=17))
def test_marginals_of_all_experts_and_of_all_but_one(problem: Any) -> None:
    scores, _ = problem
    num_experts = scores.shape[-1]
    np.testing.assert_allclose(subset_marginals(scores, k=num_experts), 1, rtol=1e-14)
    if num_experts > 1:
        # To leave one out is to draw one by minus the scores.
        left_out = subset_marginals(-scores, k=1)
        got = subset_marginals(scores, k=num_experts - 1)
        np.testing.assert_allclose(got, 1 - left_out, atol=1e-14)


def test_minus_infinity_is_in_no_subset(lib: Any) -> None:
    scores = np.asarray([[0.0, -np.inf, 0.0, 0.0], [-np.inf, 1e4, -1e4, -np.inf]])
    got = lib.run(lambda s: subset_marginals(s, k=2, xp=lib.xp), scores)
    expected = np.asarray([[2 / 3, 0, 2 / 3, 2 / 3], [0, 1, 1, 0]])
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-14)
    weights = lib.run(lambda s: exact_k_gate(s, k=2, xp=lib.xp), scores)
    np.testing.assert_array_equal(np.asarray(weights), [[0.5, 0, 0.5, 0], [0, 0.5, 0.5, 0]])


@given(problem=problems(most_experts=17))
def test_exactly_k_experts_have_the_weight_1_over_k(eager_lib: Any, problem: Any) -> None:
    scores, k = problem
    got = exact_k_gate(eager_lib.asarray(scores), k=k)
    assert_on_simplex(got, k=k)
    kept = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    expected = np.zeros_like(scores)
    np.put_along_axis(expected, kept, 1 / k, -1)
    np.testing.assert_array_equal(np.asarray(got), expected)


@given(problem=problems(most_experts=17), data=st.data())
def test_exactly_k_experts_are_drawn_whatever_the_numbers(
    eager_lib: Any, problem: Any, data: st.DataObject
) -> None:
    scores, k = problem
    shape = (scores.shape[0], scores.shape[1] - 1)
    # 1.0 is not allowed, but half a unit below it may have been rounded.
    number = st.one_of(st.sampled_from([0.0, np.nextafter(1.0, 0.0), 1.0]), st.floats(0, 1))
    uniforms = data.draw(npst.arrays(np.float64, shape, elements=number))
    arrays = (eager_lib.asarray(scores.astype(np.float32)), eager_lib.asarray(uniforms))
    got = exact_k_gate(arrays[0], k=k, uniforms=arrays[1])
    assert np.all(np.asarray(count_nonzero(got)) == k)
    assert set(np.asarray(got).flat) <= {np.float32(0), np.float32(1 / k)}


@pytest.mark.parametrize(("num_experts", "k"), [(2, 1), (5, 1), (5, 2), (6, 3), (4, 3)])
def test_subsets_are_drawn_with_their_chances(lib: Any, num_experts: int, k: int) -> None:
    rng = np.random.default_rng(num_experts)
    scores, num_rows = rng.normal(size=num_experts), 20_000
    got = lib.run(
        lambda s, u: exact_k_gate(s, k=k, uniforms=u, xp=lib.xp),
        np.tile(scores, (num_rows, 1)),
        rng.random((num_rows, num_experts - 1)),
    )
    drawn = (np.asarray(got) > 0) @ subsets(num_experts, k).T == k
    counts, expected = drawn.sum(axis=0), num_rows * chances(scores, k)
    assert counts.sum() == num_rows
    statistic = np.sum((counts - expected) ** 2 / expected)
    # Chi-squared: above this once in a thousand seeds at most, for up to 19 degrees of freedom.
    degrees = counts.size - 1
    assert statistic < degrees + 3.1 * np.sqrt(2 * degrees) + 7


def test_gumbel_noise_would_draw_other_subsets() -> None:
    # Why the numbers are uniform: the k largest of scores + Gumbel noise are drawn one
    # after the other without replacement, which is another distribution for k > 1.
    odds = np.asarray([8.0, 1.0, 1.0])
    p = odds / odds.sum()
    first_then_second = p[1] * p[2] / (1 - p[1]) + p[2] * p[1] / (1 - p[2])
    np.testing.assert_allclose(1 - first_then_second, 0.978, atol=1e-3)
    np.testing.assert_allclose(subset_marginals(np.log(odds), k=2)[0], 16 / 17, rtol=1e-14)
