"""The scale is the standard deviation, and takes the unit of the scores out of the gate."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import comet_gate, dselect_k_gate, score_scale

RNG = np.random.default_rng(0)
SPLITS, LEAVES = RNG.normal(size=(50, 2, 4)), RNG.normal(size=(50, 2, 5))
BITS, SELECTORS = RNG.normal(size=(50, 2, 3)), RNG.normal(size=(50, 2))


@pytest.mark.parametrize("batch", [(50,), (5, 10)])
def test_is_the_standard_deviation_over_the_batch(lib: Any, batch: tuple[int, ...]) -> None:
    scores = (3 + SPLITS * [1e-3, 1.0, 10.0, 1e4]).reshape(*batch, 2, 4)
    got = lib.run(lambda s: score_scale(s, xp=lib.xp), scores)
    np.testing.assert_allclose(np.asarray(got), np.std(scores.reshape(50, 2, 4), 0), rtol=1e-12)


@given(
    scores=npst.arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(1, 3)),
        elements=st.one_of(
            st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from([0.0, 1e-38, 1e30, -1e30])
        ),
    )
)
def test_is_positive_and_finite_for_any_scores(eager_lib: Any, scores: Any) -> None:
    got = np.asarray(score_scale(eager_lib.asarray(scores)))
    assert got.shape == scores.shape[1:]
    assert np.all(np.isfinite(got))
    assert np.all(got > 0)


@pytest.mark.parametrize("value", [0.0, 0.1, 3e5])
@pytest.mark.parametrize("rows", [0, 1, 7, 10_000])
def test_what_does_not_vary_has_the_scale_1(lib: Any, rows: int, value: float) -> None:
    scores = np.full((rows, 1, 2), value, dtype=np.float32)
    np.testing.assert_array_equal(np.asarray(score_scale(lib.asarray(scores), xp=lib.xp)), 1)


def test_half_precision_does_not_round_to_0() -> None:
    scores = np.asarray([0.0, 6e-8, 0.0, 0.0, 0.0, 0.0], dtype=np.float16).reshape(6, 1, 1)
    got = score_scale(scores)
    assert got.dtype == np.float16
    assert np.all(got > 0)


@pytest.mark.parametrize("unit", [2.0**-20, 1.0, 2.0**20])
def test_a_gate_does_not_depend_on_the_unit_of_its_scores(lib: Any, unit: float) -> None:
    def comet(splits: Any, leaves: Any, scale: Any) -> Any:
        return comet_gate(splits, leaves, gamma=1.0, split_scale=scale, xp=lib.xp)

    def dselect_k(bits: Any, selectors: Any, scale: Any) -> Any:
        options = {"num_experts": 5, "gamma": 1.0, "bit_scale": scale}
        return dselect_k_gate(bits, selectors, **options, xp=lib.xp)

    for gate, scores, others in [(comet, SPLITS, LEAVES), (dselect_k, BITS, SELECTORS)]:
        scale = np.asarray(score_scale(scores))
        expected = lib.run(gate, scores / scale, others, np.ones_like(scale))
        got = lib.run(gate, scores * unit, others, scale * unit)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-12, atol=1e-15)


def test_a_scale_of_1_is_no_scale_to_the_bit() -> None:
    for shape in [(), (4,), (1,), (2, 1), (2, 4)]:
        scaled = comet_gate(SPLITS, LEAVES, gamma=1.0, split_scale=np.ones(shape))
        for one, other in zip(scaled, comet_gate(SPLITS, LEAVES, gamma=1.0), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_hard_gate_does_not_depend_on_the_scale() -> None:
    scale = np.full((2, 4), 1e-3)
    scaled = comet_gate(SPLITS, LEAVES, gamma=1.0, hard=True, split_scale=scale)
    np.testing.assert_array_equal(
        scaled.weights, comet_gate(SPLITS, LEAVES, gamma=1.0, hard=True).weights
    )
