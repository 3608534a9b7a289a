"""Load becomes even, by a gradient or by a bias, and stays so."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import (
    expert_load,
    load_balance_penalty,
    update_bias_by_quantile,
    update_bias_by_sign,
)


def skewed(rows: int, num_experts: int) -> Any:
    """Draw affinities in (0, 1) of which the first experts get nearly all."""
    rng = np.random.default_rng(rows + num_experts)
    return 1 / (1 + np.exp(-rng.normal(size=(rows, num_experts)) - np.linspace(2, -2, num_experts)))


def select(affinities: Any, bias: Any, k: int) -> Any:
    """Mark the k largest affinities + bias of each row."""
    order = np.argsort(-(affinities + bias), axis=-1, kind="stable")
    selected = np.zeros_like(affinities)
    np.put_along_axis(selected, order[:, :k], 1.0, -1)
    return selected


@pytest.mark.parametrize(("num_experts", "k", "rows"), [(8, 1, 512), (16, 2, 512), (64, 6, 1024)])
def test_the_quantile_makes_skewed_load_even(num_experts: int, k: int, rows: int) -> None:
    affinities, bias = skewed(rows, num_experts), np.zeros(num_experts)
    fair = rows * k / num_experts
    assert np.max(np.sum(select(affinities, bias, k), axis=0)) > 4 * fair
    for _ in range(30):
        bias = update_bias_by_quantile(bias, affinities, k=k)
    counts = np.sum(select(affinities, bias, k), axis=0)
    # The last row or two pass back and forth as the thresholds move.
    assert np.max(np.abs(counts - fair)) <= 2


def test_the_sign_makes_skewed_load_even() -> None:
    affinities, bias = skewed(512, 16), np.zeros(16)
    for _ in range(2000):
        bias = update_bias_by_sign(bias, expert_load(select(affinities, bias, 2)), rate=1e-3)
    counts = np.sum(select(affinities, bias, 2), axis=0)
    # A step of 1e-3 of affinities that span 1 moves a row or two of 512.
    assert np.max(np.abs(counts - 64)) <= 6


@pytest.mark.parametrize("k", [1, 2, 5])
def test_even_load_is_left_as_it_is(lib: Any, k: int) -> None:
    bias = np.linspace(0.0, 0.1, 5)
    affinities = np.stack([np.roll(np.linspace(0.0, 1.0, 5), row) for row in range(10)]) - bias
    load = np.asarray(expert_load(select(affinities, bias, k)))
    assert len(set(load.tolist())) == 1
    moved = [
        lib.run(lambda b, w: update_bias_by_sign(b, w, rate=0.5, xp=lib.xp), bias, load),
        lib.run(lambda b, a: update_bias_by_quantile(b, a, k=k, xp=lib.xp), bias, affinities),
    ]
    for each in moved:
        np.testing.assert_array_equal(np.asarray(each), bias)


@given(
    num_experts=st.integers(2, 9),
    rows=st.integers(2, 20),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_the_quantile_is_even_against_the_thresholds_it_saw(
    eager_lib: Any, num_experts: int, rows: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, num_experts - 1))
    rng = np.random.default_rng(seed)
    bias, affinities = rng.normal(size=num_experts), rng.normal(size=(rows, num_experts))
    got = update_bias_by_quantile(eager_lib.asarray(bias), eager_lib.asarray(affinities), k=k)
    ranked = -np.sort(-(affinities + bias), axis=-1)
    threshold = (ranked[:, k - 1] + ranked[:, k]) / 2
    passing = np.sum(affinities + np.asarray(got) > threshold[:, None], axis=0)
    assert np.all(passing >= np.floor(rows * k / num_experts))
    assert np.all(passing <= np.ceil(rows * k / num_experts))


def test_few_rows_or_all_experts_leave_the_bias(lib: Any) -> None:
    bias, affinities = lib.asarray(np.ones(3)), lib.asarray(np.eye(3))
    for rows, k in [(0, 1), (1, 1), (3, 3)]:
        got = update_bias_by_quantile(bias, affinities[:rows, :], k=k, xp=lib.xp)
        np.testing.assert_array_equal(np.asarray(got), np.ones(3))


def test_the_sign_moves_by_the_rate_against_the_load(lib: Any) -> None:
    bias, load = np.zeros(4), np.asarray([10.0, 0.0, 4.0, 6.0])
    got = lib.run(lambda b, w: update_bias_by_sign(b, w, rate=0.25, xp=lib.xp), bias, load)
    assert np.asarray(got).tolist() == [-0.25, 0.25, 0.25, -0.25]


def test_load_balance_is_the_sum_of_the_switch_transformer(lib: Any) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(6), size=(3, 5))
    weights = np.where(probabilities == probabilities.max(-1, keepdims=True), probabilities, 0)
    got = lib.run(lambda p, w: load_balance_penalty(p, w, xp=lib.xp), probabilities, weights)
    expected = 0.0
    for expert in range(6):
        f = np.mean(np.argmax(probabilities, axis=-1) == expert)
        expected += f * np.mean(probabilities[..., expert])
    np.testing.assert_allclose(float(got), 6 * expected, rtol=1e-14)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_load_balance_is_1_at_even_load_and_most_for_one_expert(lib: Any, k: int) -> None:
    even = np.stack([np.roll(np.arange(4) < k, row) for row in range(4)]).astype(np.float64)
    uniform, one = np.full((4, 4), 0.25), np.tile([1.0, 0.0, 0.0, 0.0], (4, 1))
    assert float(lib.run(lambda p, w: load_balance_penalty(p, w, xp=lib.xp), uniform, even)) == 1
    assert float(lib.run(lambda p, w: load_balance_penalty(p, w, xp=lib.xp), one, one)) == 4


def test_without_rows_or_pairs_load_balance_is_0(lib: Any) -> None:
    nothing, no_pairs = np.zeros((0, 4)), np.zeros((2, 4))
    for probabilities, weights in [(nothing, nothing), (no_pairs + 0.25, no_pairs)]:
        arrays = lib.asarray(probabilities), lib.asarray(weights)
        assert float(load_balance_penalty(*arrays, xp=lib.xp)) == 0
