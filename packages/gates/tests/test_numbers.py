"""The tree gates keep their digits: sums, deep trees, low precision, all libraries."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_gates import comet_gate, dselect_k_gate, entropy_penalty

NUM_EXPERTS = [2, 3, 8, 17, 64, 1000]
DEEP = 4096


def draw_scores(num_experts: int, num_slots: int, dtype: Any, rows: int = 20) -> tuple[Any, Any]:
    rng = np.random.default_rng(num_experts * 10 + num_slots)
    splits = rng.normal(size=(rows, num_slots, num_experts - 1))
    leaves = rng.normal(size=(rows, num_slots, num_experts), scale=3)
    return splits.astype(dtype), leaves.astype(dtype)


def comet(lib: Any, gamma: float, *, hard: bool = False) -> Any:
    return lambda s, a: comet_gate(s, a, gamma=gamma, hard=hard, xp=lib.xp)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_rows_sum_to_1_within_4_roundings(
    lib: Any, num_experts: int, num_slots: int, dtype: Any
) -> None:
    splits, leaves = draw_scores(num_experts, num_slots, dtype)
    for scale in (1, 3e3):
        gate = lib.run(comet(lib, 3.0), splits, leaves * dtype(scale))
        sums = np.sum(np.asarray(gate.weights).astype(np.longdouble), axis=-1)
        assert np.max(np.abs(sums - 1)) <= 4 * np.finfo(dtype).eps


@pytest.mark.parametrize(("dtype", "relative"), [(np.float32, 1e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
def test_all_libraries_agree(lib: Any, num_experts: int, dtype: Any, relative: float) -> None:
    splits, leaves = draw_scores(num_experts, 2, dtype)
    num_bits = (num_experts - 1).bit_length()

    def gates(xp: Any) -> Any:
        options = {"num_experts": num_experts, "gamma": 3.0, "xp": xp}
        return lambda s, a, b: (
            *comet_gate(s, a, gamma=3.0, xp=xp),
            *dselect_k_gate(b, a[..., 0], **options),
        )

    bits = np.resize(leaves, (len(leaves), 2, num_bits)) / dtype(3)
    expected = gates(np)(splits, leaves, bits)
    for ours, theirs in zip(lib.run(gates(lib.xp), splits, leaves, bits), expected, strict=True):
        assert np.asarray(ours).dtype == dtype
        # Relative to the largest weight of the row: products along a path add up roundings.
        atol = relative * np.max(theirs)
        np.testing.assert_allclose(np.asarray(ours), theirs, rtol=relative, atol=atol)


def saturated(gamma: float) -> dict[str, Any]:
    """Draw split scores outside the band, on its edges, and barely inside."""
    rng = np.random.default_rng(0)
    signs = np.sign(rng.normal(size=(3, 2, DEEP - 1)))
    barely = rng.choice([1.0, 1 - 1e-7, 1 - 1e-3], size=signs.shape)
    edge = signs * gamma / 2
    return {"far": 1e4 * signs, "edge": edge, "barely": edge * barely, "zero": 0 * signs}


@pytest.mark.parametrize("where", ["far", "edge", "barely", "zero"])
@pytest.mark.parametrize("gamma", [1e-3, 1.0])
def test_a_tree_of_4096_leaves_has_weights(lib: Any, gamma: float, where: str) -> None:
    splits = saturated(gamma)[where].astype(np.float32)
    leaves = np.random.default_rng(1).choice([-1e4, 0.0, 1e4], size=(3, 2, DEEP))
    gate = lib.run(comet(lib, gamma), splits, leaves.astype(np.float32))
    assert all(np.all(np.isfinite(np.asarray(part))) for part in gate)
    sums = np.sum(np.asarray(gate.weights).astype(np.float64), axis=-1)
    np.testing.assert_allclose(sums, 1, atol=4 * float(np.finfo(np.float32).eps))
    # XLA multiplies by 1 / gamma, which is exact for 1 only, so that an edge is one for 1 only.
    if where == "far" or (where == "edge" and gamma == 1):
        hard = lib.run(comet(lib, gamma, hard=True), splits, leaves.astype(np.float32))
        np.testing.assert_array_equal(np.asarray(gate.weights), np.asarray(hard.weights))


def gate_and_penalty(xp: Any, gamma: float) -> Any:
    def loss(splits: Any, leaves: Any) -> Any:
        gate = comet_gate(splits, leaves, gamma=gamma, xp=xp)
        size = gate.weights.shape[-1]
        ramp = xp.linspace(-1, 1, size, dtype=gate.weights.dtype)
        return xp.sum(gate.weights * ramp) + entropy_penalty(gate.slot_probabilities, xp=xp)

    return loss


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("where", ["far", "edge", "barely", "zero"])
def test_a_tree_of_4096_leaves_has_finite_gradients_in_torch(
    torch_lib: Any, where: str, dtype: str
) -> None:
    xp = torch_lib.xp
    leaves = np.random.default_rng(1).choice([-1e4, 0.0, 1e4], size=(3, 2, DEEP))
    arrays = [
        xp.astype(torch_lib.asarray(a), getattr(xp, dtype)).requires_grad_()
        for a in (saturated(1.0)[where], leaves)
    ]
    gate_and_penalty(xp, 1.0)(*arrays).backward()
    assert all(bool(xp.all(xp.isfinite(array.grad))) for array in arrays)
    if where in {"far", "edge"}:
        assert not bool(xp.any(arrays[0].grad))


@pytest.mark.parametrize("where", ["far", "edge", "barely", "zero"])
def test_a_tree_of_4096_leaves_has_finite_gradients_in_jax(where: str) -> None:
    jax = pytest.importorskip("jax", reason="needs jax: install the dependency group `interop`")
    leaves = np.random.default_rng(1).choice([-1e4, 0.0, 1e4], size=(3, 2, DEEP))
    arrays = (saturated(1.0)[where].astype(np.float32), leaves.astype(np.float32))
    gradient = jax.jit(jax.grad(gate_and_penalty(jax.numpy, 1.0), argnums=(0, 1)))
    assert all(np.all(np.isfinite(np.asarray(part))) for part in gradient(*arrays))


@given(
    depth=st.integers(1, 5), num_slots=st.integers(1, 4), seed=st.integers(0, 99), data=st.data()
)
def test_swapping_two_subtrees_swaps_their_experts(
    eager_lib: Any, depth: int, num_slots: int, seed: int, data: st.DataObject
) -> None:
    num_experts = 2**depth
    splits, leaves = draw_scores(num_experts, num_slots, np.float64)
    splits = np.roll(splits, seed, axis=0)
    level = data.draw(st.integers(0, depth - 1))
    # Turning every split of a level over exchanges what lies left and right below it.
    turned = splits.copy()
    flip = num_experts >> (level + 1)
    for below in range(level, depth):
        nodes = np.arange(2**below) + 2**below - 1
        bit = (2**below) >> (level + 1)
        turned[..., nodes] = splits[..., (np.arange(2**below) ^ bit) + 2**below - 1]
        if below == level:
            turned[..., nodes] = -splits[..., nodes]
    moved = np.arange(num_experts) ^ flip
    gates = [
        comet_gate(eager_lib.asarray(s), eager_lib.asarray(a), gamma=3.0)
        for s, a in [(splits, leaves), (turned, leaves[..., moved])]
    ]
    for one, other in zip(*gates, strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one)[..., moved], atol=1e-14)


@pytest.mark.parametrize("num_slots", [2, 3, 4])
def test_the_order_of_the_trees_does_not_matter(lib: Any, num_slots: int) -> None:
    splits, leaves = draw_scores(9, num_slots, np.float64)
    gate = lib.run(comet(lib, 3.0), splits, leaves)
    turned = lib.run(comet(lib, 3.0), splits[:, ::-1].copy(), leaves[:, ::-1].copy())
    np.testing.assert_allclose(np.asarray(turned.weights), np.asarray(gate.weights), atol=1e-15)
