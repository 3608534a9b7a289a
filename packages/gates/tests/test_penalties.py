"""Penalties are the sums they say, and 0 without rows."""

from typing import Any

import numpy as np
import pytest

from moe_gates import entropy_penalty, unreachable_penalty


def test_entropy_is_the_mean_over_rows_of_the_sum_over_slots(lib: Any) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3, 4))
    got = lib.run(lambda p: entropy_penalty(p, xp=lib.xp), p)
    expected = np.mean(np.sum(-p * np.log(p + 1e-6), axis=(-2, -1)))
    assert got.shape == ()
    np.testing.assert_allclose(float(got), expected, rtol=1e-14)


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


@pytest.mark.parametrize("penalty", [entropy_penalty, unreachable_penalty])
def test_the_batch_can_be_empty_in_both_senses(lib: Any, penalty: Any) -> None:
    assert float(lib.run(lambda p: penalty(p, xp=lib.xp), np.zeros((0, 2, 3)))) == 0
    alone, batched = np.full((2, 3), 0.25), np.full((1, 2, 3), 0.25)
    assert float(penalty(alone)) == float(penalty(batched))


@pytest.mark.parametrize("penalty", [entropy_penalty, unreachable_penalty])
def test_half_precision_is_summed_wide(penalty: Any) -> None:
    p = np.full((5000, 1, 4), 0.25, dtype=np.float16)
    got = penalty(p)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, penalty(p.astype(np.float64)), rtol=2**-10)
