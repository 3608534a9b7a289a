"""Penalties are the sums they say, and 0 without rows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import (
    entropy_penalty,
    mutual_information_penalty,
    normalize,
    trimmed_lasso_penalty,
    unreachable_penalty,
    z_penalty,
)


def test_entropy_is_the_mean_over_rows_of_the_sum_over_slots(lib: Any) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 4))
    got = lib.run(lambda p: entropy_penalty(p, xp=lib.xp), p)
    expected = np.mean(np.sum(-p * np.log(p + 1e-6), axis=(-2, -1)))
    assert got.shape == ()
    np.testing.assert_allclose(float(got), expected, rtol=1e-14)


def test_entropy_can_be_summed_over_rows(lib: Any) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 4))
    got = lib.run(lambda p: entropy_penalty(p, reduction="sum", xp=lib.xp), p)
    np.testing.assert_allclose(float(got), np.sum(-p * np.log(p + 1e-6)), rtol=1e-14)


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5)])
def test_entropy_of_a_matrix_and_of_its_rows_is_the_permutation_penalty(
    lib: Any, shape: tuple[int, ...]
) -> None:
    def penalty(matrix: Any) -> Any:
        rows = normalize(matrix, xp=lib.xp)
        summed = [entropy_penalty(each, reduction="sum", xp=lib.xp) for each in (matrix, rows)]
        return summed[0] + summed[1]

    matrix = np.random.default_rng(0).random(shape) ** 3
    matrix /= matrix.sum(axis=-2, keepdims=True)
    rows = matrix / matrix.sum(axis=-1, keepdims=True)
    expected = -np.sum(matrix * np.log(matrix + 1e-6)) - np.sum(rows * np.log(rows + 1e-6))
    np.testing.assert_allclose(float(lib.run(penalty, matrix)), expected, rtol=1e-13)
    assert abs(float(lib.run(penalty, np.eye(5)[[3, 1, 0, 4, 2]]))) < 1.1e-5


def test_entropy_of_one_hot_slots_is_0_up_to_the_offset(lib: Any) -> None:
    got = lib.run(lambda p: entropy_penalty(p, xp=lib.xp), np.tile(np.eye(4), (3, 1, 1)))
    assert -4.1e-6 < float(got) <= 0


def test_unreachable_is_the_sum_over_rows_and_selectors(lib: Any) -> None:
    r = np.random.default_rng(0).random((3, 2, 5))
    got = lib.run(lambda r: unreachable_penalty(r, xp=lib.xp), r)
    np.testing.assert_allclose(float(got), np.sum(1 / (1e-6 + r.sum(-1))), rtol=1e-14)


def test_unreachable_is_a_million_for_a_selector_that_selects_nothing(lib: Any) -> None:
    got = lib.run(lambda r: unreachable_penalty(r, xp=lib.xp), np.zeros((1, 1, 5)))
    np.testing.assert_allclose(float(got), 1e6, rtol=1e-12)


def test_mutual_information_is_the_mean_entropy_less_that_of_the_mean(lib: Any) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 4))
    got = lib.run(lambda p: mutual_information_penalty(p, xp=lib.xp), p)
    mean = p.mean(axis=(0, 1))
    of_rows = np.mean(np.sum(-p * np.log(p + 1e-6), axis=(-2, -1)))
    np.testing.assert_allclose(float(got), of_rows + np.sum(mean * np.log(mean + 1e-6)), rtol=1e-13)


def test_mutual_information_tells_spread_from_collapse(lib: Any) -> None:
    spread, collapsed = np.eye(4)[:, None, :], np.tile(np.eye(4)[0], (4, 1, 1))
    got = lib.run(lambda p: mutual_information_penalty(p, xp=lib.xp), spread)
    np.testing.assert_allclose(float(got), -np.log(4), rtol=1e-5)
    assert float(lib.run(lambda p: mutual_information_penalty(p, xp=lib.xp), collapsed)) == 0
    # The entropy penalty cannot tell them apart.
    assert float(entropy_penalty(spread)) == float(entropy_penalty(collapsed))


@given(p=npst.arrays(np.float64, st.tuples(*[st.integers(1, 4)] * 3), elements=st.floats(0, 1)))
def test_mutual_information_is_never_above_0(p: Any) -> None:
    assert mutual_information_penalty(p) <= 1e-12


def test_z_is_the_mean_squared_log_sum(lib: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3, 5), scale=4)
    got = lib.run(lambda s: z_penalty(s, xp=lib.xp), scores)
    expected = np.mean(np.log(np.sum(np.exp(scores), axis=-1)) ** 2)
    np.testing.assert_allclose(float(got), expected, rtol=1e-14)


def test_z_of_large_and_forbidden_scores_is_finite(lib: Any) -> None:
    scores = np.asarray([[1e4, -1e4, -np.inf]])
    got = lib.run(lambda s: z_penalty(s, xp=lib.xp), scores)
    np.testing.assert_allclose(float(got), 1e8, rtol=1e-15)


@given(data=st.data(), rows=st.integers(0, 4), num_experts=st.integers(1, 9))
def test_trimmed_lasso_is_the_sum_of_all_but_the_largest(
    eager_lib: Any, data: st.DataObject, rows: int, num_experts: int
) -> None:
    k = data.draw(st.integers(1, num_experts))
    entries = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    weights = data.draw(npst.arrays(np.float64, (rows, num_experts), elements=entries))
    got = float(trimmed_lasso_penalty(eager_lib.asarray(weights), k=k))
    left = np.sort(weights, axis=-1)[:, : num_experts - k].sum(axis=-1)
    np.testing.assert_allclose(got, left.mean() if rows else 0, rtol=1e-14)
    assert (got == 0) == bool(np.all(np.count_nonzero(weights, axis=-1) <= k))


def test_trimmed_lasso_is_the_same_in_all_libraries(lib: Any) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(6), size=(2, 4))
    got = lib.run(lambda w: trimmed_lasso_penalty(w, k=2, xp=lib.xp), weights)
    expected = np.mean(np.sum(np.sort(weights, axis=-1)[..., :4], axis=-1))
    np.testing.assert_allclose(float(got), expected, rtol=1e-14)


def trimmed(weights: Any, xp: Any = None) -> Any:
    return trimmed_lasso_penalty(weights, k=1, xp=xp)


def summed_entropy(probabilities: Any, xp: Any = None) -> Any:
    return entropy_penalty(probabilities, reduction="sum", xp=xp)


PENALTIES = [
    entropy_penalty,
    summed_entropy,
    mutual_information_penalty,
    unreachable_penalty,
    z_penalty,
    trimmed,
]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_batch_can_be_empty_in_both_senses(lib: Any, penalty: Any) -> None:
    assert float(lib.run(lambda p: penalty(p, xp=lib.xp), np.zeros((0, 2, 3)))) == 0
    alone, batched = np.full((2, 3), 0.25), np.full((1, 2, 3), 0.25)
    assert float(penalty(alone)) == float(penalty(batched))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_half_precision_is_summed_wide(penalty: Any) -> None:
    p = np.full((5000, 1, 4), 0.25, dtype=np.float16)
    p[::2, :, :2] += 0.25
    got = penalty(p)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, penalty(p.astype(np.float64)), rtol=2**-10, atol=1e-7)
