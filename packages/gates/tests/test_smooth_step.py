"""The step is a step, smooth, and saturates exactly."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import smooth_step
from moe_gates._smooth_step import smooth_step_pair

gammas = st.floats(1e-3, 1e3)
scores = npst.arrays(np.float64, st.integers(0, 20), elements=st.floats(-1e4, 1e4))


@given(t=scores, gamma=gammas)
def test_equals_the_published_cubic(eager_lib: Any, t: Any, gamma: float) -> None:
    x = np.clip(t / gamma, -0.5, 0.5)
    expected = -2 * x**3 + 1.5 * x + 0.5
    got = np.asarray(smooth_step(eager_lib.asarray(t), gamma=gamma))
    np.testing.assert_allclose(got, expected, atol=1e-15)


@given(t=scores, gamma=gammas)
def test_is_monotone_within_0_and_1_and_symmetric(t: Any, gamma: float) -> None:
    step, rest = smooth_step_pair(np.sort(t), gamma, np)
    assert np.all((step >= 0) & (step <= 1) & (rest >= 0) & (rest <= 1))
    assert np.all(np.diff(step) >= -1e-15)
    np.testing.assert_allclose(step + rest, 1, rtol=1e-15)


@pytest.mark.parametrize("gamma", [0.001, 1.0, 10.0])
def test_is_exactly_0_or_1_from_the_edge_of_the_band_on(lib: Any, gamma: float) -> None:
    t = np.asarray([-1e4, -gamma / 2, 0.0, gamma / 2, 1e4])
    got = np.asarray(lib.run(lambda t: smooth_step(t, gamma=gamma, xp=lib.xp), t))
    np.testing.assert_array_equal(got, [0, 0, 0.5, 1, 1])


def test_keeps_relative_accuracy_near_0_in_float32() -> None:
    u = np.asarray([2.0**-12], dtype=np.float32)
    _, rest = smooth_step_pair(0.5 - u, 1.0, np)
    u64 = u.astype(np.float64)
    np.testing.assert_allclose(rest, u64 * u64 * (3 - 2 * u64), rtol=4e-7)


def test_half_precision_is_computed_wide() -> None:
    t = np.linspace(-0.01, 0.01, 101).astype(np.float16)
    got = smooth_step(t, gamma=0.01)
    assert got.dtype == np.float16
    wide = smooth_step(t.astype(np.float64), gamma=0.01)
    np.testing.assert_allclose(got, wide, atol=2**-11)


def test_no_shape_is_special() -> None:
    assert smooth_step(np.zeros((0, 3)), gamma=1.0).shape == (0, 3)
    assert smooth_step(np.zeros(()), gamma=1.0).shape == ()
