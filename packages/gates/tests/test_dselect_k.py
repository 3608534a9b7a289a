"""DSelect-k against its definition by codes, and its guarantees."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from moe_gates import comet_gate, dselect_k_gate
from moe_gates.testing import assert_k_sparse, assert_on_simplex

NUM_EXPERTS = [*range(2, 18), 31, 64, 1000]


def num_bits(num_experts: int) -> int:
    return int(np.ceil(np.log2(num_experts)))


def naive(bits: Any, selectors: Any, num_experts: int, gamma: float) -> Any:
    """Slot weights, one code and one bit at a time."""
    u = np.clip(bits / gamma + 0.5, 0, 1)
    is_1 = u * u * (3 - 2 * u)
    is_0 = (1 - u) ** 2 * (1 + 2 * u)
    codes = np.ones((*selectors.shape, num_experts))
    for expert in range(num_experts):
        for bit, digit in enumerate(format(expert, f"0{bits.shape[-1]}b")):
            codes[..., expert] *= (is_1 if digit == "1" else is_0)[..., bit]
    share = np.exp(selectors - selectors.max(-1, keepdims=True))
    return (share / share.sum(-1, keepdims=True))[..., None] * codes


def draw_scores(num_experts: int, num_slots: int, batch: tuple[int, ...] = (9,)) -> tuple[Any, Any]:
    rng = np.random.default_rng(num_experts * 10 + num_slots)
    bits = rng.normal(size=(*batch, num_slots, num_bits(num_experts)))
    return bits, rng.normal(size=(*batch, num_slots), scale=3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, Any, int, float]:
    num_experts, num_slots = draw(st.sampled_from(NUM_EXPERTS)), draw(st.integers(1, 4))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 2)]))
    gamma = draw(st.sampled_from([0.01, 1.0, 10.0]))
    bit = st.one_of(st.floats(-gamma, gamma), st.sampled_from([-gamma / 2, 0.0, gamma / 2]))
    shape = (*batch, num_slots, num_bits(num_experts))
    bits = draw(npst.arrays(np.float64, shape, elements=bit))
    selectors = draw(npst.arrays(np.float64, shape[:-1], elements=st.floats(-1e4, 1e4)))
    return bits, selectors, num_experts, gamma


@pytest.mark.parametrize("batch", [(), (9,)])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_equals_its_definition(lib: Any, num_experts: int, batch: tuple[int, ...]) -> None:
    bits, selectors = draw_scores(num_experts, 3, batch)
    gate = lib.run(
        lambda b, a: dselect_k_gate(b, a, num_experts=num_experts, gamma=2.0, xp=lib.xp),
        bits,
        selectors,
    )
    expected = naive(bits, selectors, num_experts, 2.0)
    np.testing.assert_allclose(np.asarray(gate.slot_weights), expected, atol=1e-15)
    np.testing.assert_allclose(np.asarray(gate.weights), expected.sum(axis=-2), atol=1e-15)


@given(problem=problems())
def test_rows_sum_to_1_at_most_and_exactly_for_powers_of_2(eager_lib: Any, problem: Any) -> None:
    bits, selectors, num_experts, gamma = problem
    arrays = [eager_lib.asarray(scores) for scores in (bits, selectors)]
    gate = dselect_k_gate(*arrays, num_experts=num_experts, gamma=gamma)
    weights = np.asarray(gate.weights)
    assert np.all(weights >= 0)
    assert np.all(np.sum(weights, -1) <= 1 + 1e-14)
    if num_experts == 2 ** num_bits(num_experts):
        assert_on_simplex(gate.weights)
    expected = naive(bits, selectors, num_experts, gamma)
    np.testing.assert_allclose(np.asarray(gate.slot_weights), expected, atol=1e-14)


@given(problem=problems())
def test_hard_rows_have_at_most_one_expert_a_slot(eager_lib: Any, problem: Any) -> None:
    bits, selectors, num_experts, gamma = problem
    arrays = [eager_lib.asarray(scores) for scores in (bits, selectors)]
    gate = dselect_k_gate(*arrays, num_experts=num_experts, gamma=gamma, hard=True)
    assert_k_sparse(gate.weights, k=min(selectors.shape[-1], num_experts))
    assert set(np.asarray(gate.slot_probabilities).flat) <= {0.0, 1.0}


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("num_experts", [2, 4, 16, 64])
def test_is_comet_with_scores_tied_per_level_and_per_tree(
    lib: Any, num_experts: int, *, hard: bool
) -> None:
    bits, selectors = draw_scores(num_experts, 3)
    gate = lib.run(
        lambda b, a: dselect_k_gate(b, a, num_experts=num_experts, gamma=2.0, hard=hard, xp=lib.xp),
        bits,
        selectors,
    )
    # Left, the lower expert, is bit 0.
    tied_splits = np.concatenate(
        [np.repeat(-bits[..., [level]], 2**level, -1) for level in range(bits.shape[-1])], -1
    )
    tied_leaves = np.repeat(selectors[..., None], num_experts, -1)
    comet = lib.run(
        lambda s, a: comet_gate(s, a, gamma=2.0, hard=hard, xp=lib.xp), tied_splits, tied_leaves
    )
    for ours, theirs in zip(gate, comet, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-14)


def test_the_most_significant_bit_comes_first(lib: Any) -> None:
    bits, selectors = np.asarray([[9.0, 9.0, -9.0]]), np.zeros(1)
    gate = lib.run(
        lambda b, a: dselect_k_gate(b, a, num_experts=8, gamma=1.0, xp=lib.xp), bits, selectors
    )
    np.testing.assert_array_equal(np.asarray(gate.weights), np.eye(8)[0b110])


def test_a_code_beyond_the_experts_selects_nothing(lib: Any) -> None:
    bits, selectors = np.asarray([[9.0, 9.0, -9.0]]), np.zeros(1)
    gate = lib.run(
        lambda b, a: dselect_k_gate(b, a, num_experts=6, gamma=1.0, hard=True, xp=lib.xp),
        bits,
        selectors,
    )
    np.testing.assert_array_equal(np.asarray(gate.weights), np.zeros(6))


def test_a_bit_of_exactly_0_keeps_the_lower_expert_when_hard(lib: Any) -> None:
    gate = lib.run(
        lambda b, a: dselect_k_gate(b, a, num_experts=8, gamma=1.0, hard=True, xp=lib.xp),
        np.zeros((1, 3)),
        np.zeros(1),
    )
    np.testing.assert_array_equal(np.asarray(gate.weights), np.eye(8)[0])
