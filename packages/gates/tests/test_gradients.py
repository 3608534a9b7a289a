"""Gradients of torch, of JAX and finite differences agree, and are never NaN."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moe_gates import (
    comet_gate,
    comet_route,
    dselect_k_gate,
    entropy_penalty,
    load_balance_penalty,
    mix,
    mutual_information_penalty,
    normalize,
    permute,
    score_scale,
    smooth_step,
    to_dense,
    to_sparse,
    top_k_gate,
    total_variation,
    trimmed_lasso_penalty,
    unreachable_penalty,
    z_penalty,
)

RNG = np.random.default_rng(0)
COTANGENT = RNG.normal(size=5)
MATRIX = RNG.dirichlet(np.ones(5), size=5)
ORDER = RNG.permutation(5)
SPLITS, LEAVES = RNG.normal(size=(6, 2, 4)), RNG.normal(size=(6, 2, 5))
BITS, SELECTORS = RNG.normal(size=(6, 2, 3)), RNG.normal(size=(6, 2))
WEIGHTS = RNG.dirichlet(np.ones(5), size=(6, 2))
ROWS = RNG.normal(size=(6, 3))
NODES = [RNG.normal(size=size) for size in [(2, 4, 3), (2, 5, 3), (2, 5)]]
# A scalar function of arrays, given the namespace and a way to make constants.
Loss = Callable[..., Any]


def comet_loss(lib: Any, splits: Any, leaves: Any, *, hard: bool = False) -> Any:
    gate = comet_gate(splits, leaves, gamma=3.0, hard=hard, xp=lib.xp)
    penalty = entropy_penalty(gate.slot_probabilities, xp=lib.xp)
    return lib.xp.sum(gate.weights * lib.asarray(COTANGENT)) + penalty


def hard_comet_loss(lib: Any, splits: Any, leaves: Any) -> Any:
    return comet_loss(lib, splits, leaves, hard=True)


def dselect_k_loss(lib: Any, bits: Any, selectors: Any) -> Any:
    gate = dselect_k_gate(bits, selectors, num_experts=5, gamma=3.0, xp=lib.xp)
    penalty = unreachable_penalty(gate.slot_probabilities, xp=lib.xp)
    return lib.xp.sum(gate.weights * lib.asarray(COTANGENT)) + penalty


def top_k_loss(lib: Any, scores: Any) -> Any:
    return lib.xp.sum(top_k_gate(scores, k=3, xp=lib.xp) * lib.asarray(COTANGENT))


def relabelling_loss(lib: Any, weights: Any, matrix: Any) -> Any:
    mixed = normalize(mix(weights, matrix, xp=lib.xp), xp=lib.xp)
    moved = permute(mixed, lib.asarray(ORDER), xp=lib.xp)
    return lib.xp.sum(moved * moved * lib.asarray(COTANGENT))


def smooth_step_loss(lib: Any, t: Any) -> Any:
    return lib.xp.sum(smooth_step(t, gamma=3.0, xp=lib.xp) * lib.asarray(COTANGENT))


def scaled_comet_loss(lib: Any, splits: Any, leaves: Any) -> Any:
    # Through the scale too: it is finite, though a training loop does not want it.
    scale = score_scale(splits, xp=lib.xp)
    gate = comet_gate(splits, leaves, gamma=3.0, split_scale=scale, xp=lib.xp)
    return lib.xp.sum(gate.weights * lib.asarray(COTANGENT))


def route_loss(lib: Any, rows: Any, splits: Any, leaves: Any, leaf_bias: Any) -> Any:
    pairs = comet_route(rows, splits, leaves, leaf_bias=leaf_bias, xp=lib.xp)
    return lib.xp.sum(to_dense(pairs, num_experts=5, xp=lib.xp) * lib.asarray(COTANGENT))


def sparse_loss(lib: Any, weights: Any) -> Any:
    bounded = to_sparse(weights, max_nonzero=3, xp=lib.xp)
    dense = to_dense(bounded.sparse, num_experts=5, xp=lib.xp)
    return lib.xp.sum(dense * lib.asarray(COTANGENT)) + lib.xp.sum(bounded.dropped**2)


def penalty_loss(lib: Any, probabilities: Any) -> Any:
    xp = lib.xp
    return (
        mutual_information_penalty(probabilities, xp=xp)
        + entropy_penalty(probabilities, reduction="sum", xp=xp)
        + trimmed_lasso_penalty(probabilities, k=2, xp=xp)
        + load_balance_penalty(probabilities, top_k_gate(probabilities, k=2, xp=xp), xp=xp)
        + xp.sum(total_variation(probabilities, lib.asarray(WEIGHTS[::-1].copy()), xp=xp))
    )


def z_loss(lib: Any, scores: Any) -> Any:
    return z_penalty(scores, xp=lib.xp)


LOSSES: list[tuple[Loss, tuple[Any, ...]]] = [
    (comet_loss, (SPLITS, LEAVES)),
    (hard_comet_loss, (SPLITS, LEAVES)),
    (dselect_k_loss, (BITS, SELECTORS)),
    (top_k_loss, (LEAVES,)),
    (relabelling_loss, (WEIGHTS, MATRIX)),
    (relabelling_loss, (WEIGHTS, np.stack([MATRIX, MATRIX.T]))),
    (smooth_step_loss, (LEAVES,)),
    (scaled_comet_loss, (SPLITS, LEAVES)),
    (route_loss, (ROWS, *NODES)),
    (sparse_loss, (WEIGHTS,)),
    (penalty_loss, (WEIGHTS,)),
    (z_loss, (LEAVES,)),
]


def torch_gradients(lib: Any, loss: Loss, arrays: Any) -> list[Any]:
    leaves = [lib.asarray(array.copy()).requires_grad_() for array in arrays]
    loss(lib, *leaves).backward()
    return [np.zeros(a.shape) if a.grad is None else a.grad.numpy() for a in leaves]


def jax_gradients(lib: Any, loss: Loss, arrays: Any) -> list[Any]:
    grad = pytest.importorskip("jax").grad
    everything = tuple(range(len(arrays)))
    gradient = lib.jit(grad(lambda *a: loss(lib, *a), argnums=everything))
    return [np.asarray(g) for g in gradient(*(lib.asarray(a) for a in arrays))]


def finite_differences(lib: Any, loss: Loss, arrays: Any, size: float = 1e-6) -> list[Any]:
    gradients = []
    for which, array in enumerate(arrays):
        gradient = np.zeros_like(array)
        for entry in np.ndindex(array.shape):
            shifted = [[a.copy() for a in arrays] for _ in range(2)]
            shifted[0][which][entry] += size
            shifted[1][which][entry] -= size
            above, below = (float(loss(lib, *moved)) for moved in shifted)
            gradient[entry] = (above - below) / (2 * size)
        gradients.append(gradient)
    return gradients


def test_torch_and_jax_agree(torch_lib: Any) -> None:
    jax = pytest.importorskip("jax", reason="needs jax: install the dependency group `interop`")
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003 how JAX spells it
    jax_lib = torch_lib._replace(name="jax", xp=jax.numpy, asarray=jax.numpy.asarray, jit=jax.jit)
    for loss, arrays in LOSSES:
        both = torch_gradients(torch_lib, loss, arrays), jax_gradients(jax_lib, loss, arrays)
        for ours, theirs in zip(*both, strict=True):
            # Sums of a few dozen terms of about 1, in float64.
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)


BY_LIBRARY = {"torch": torch_gradients, "jax": jax_gradients}


@pytest.mark.parametrize(("loss", "arrays"), LOSSES)
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_gradients_equal_finite_differences(
    gradient_lib: Any, numpy_lib: Any, loss: Loss, arrays: Any
) -> None:
    expected = finite_differences(numpy_lib, loss, arrays)
    got = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, arrays)
    for ours, theirs in zip(got, expected, strict=True):
        # Central differences: 1e-12 from the step, 1e-10 from rounding of the loss.
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


SATURATED = 1e4 * np.sign(SPLITS)
EDGES = np.where(SPLITS > 0, 1.5, -1.5)
BARELY = EDGES * (1 - 1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("splits", [SATURATED, EDGES, BARELY], ids=["far", "edge", "barely"])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_saturation_and_large_scores_give_finite_gradients(
    gradient_lib: Any, splits: Any, dtype: Any
) -> None:
    arrays = [splits.astype(dtype), (1e4 * np.sign(LEAVES)).astype(dtype)]
    for gradient in BY_LIBRARY[gradient_lib.name](gradient_lib, comet_loss, arrays):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_saturated_split_gets_a_gradient_of_exactly_0(gradient_lib: Any) -> None:
    splits, leaves = BY_LIBRARY[gradient_lib.name](gradient_lib, comet_loss, (SATURATED, LEAVES))
    assert not np.any(splits)
    assert np.any(leaves)


@pytest.mark.parametrize("loss", [penalty_loss, z_loss, sparse_loss])
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_zeros_and_ties_give_finite_gradients(gradient_lib: Any, value: float, loss: Loss) -> None:
    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (np.full((6, 2, 5), value),))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_no_rows_give_a_gradient_of_0(gradient_lib: Any) -> None:
    def loss(lib: Any, shift: Any) -> Any:
        xp = lib.xp
        rows = lib.asarray(np.zeros((0, 2, 5))) + shift
        penalties = [
            entropy_penalty(rows, xp=xp),
            mutual_information_penalty(rows, xp=xp),
            unreachable_penalty(rows, xp=xp),
            trimmed_lasso_penalty(rows, k=2, xp=xp),
            load_balance_penalty(rows, rows, xp=xp),
            z_penalty(rows, xp=xp),
        ]
        return sum(penalties) + xp.sum(score_scale(rows, xp=xp))

    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (np.asarray(0.5),))
    assert float(gradient) == 0


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_row_of_zeros_normalizes_with_a_finite_gradient(gradient_lib: Any) -> None:
    def loss(lib: Any, weights: Any) -> Any:
        return lib.xp.sum(normalize(weights, xp=lib.xp) * lib.asarray(COTANGENT))

    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (np.zeros((2, 5)),))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_half_precision_is_float32_rounded(gradient_lib: Any, dtype: str) -> None:
    xp = gradient_lib.xp

    def gates(splits: Any, leaves: Any, bits: Any, selectors: Any) -> list[Any]:
        comet = comet_gate(splits, leaves, gamma=3.0, xp=xp)
        dselect_k = dselect_k_gate(bits, selectors, num_experts=5, gamma=3.0, xp=xp)
        return [*comet, *dselect_k, top_k_gate(leaves, k=2, xp=xp)]

    half = [
        xp.astype(gradient_lib.asarray(a), getattr(xp, dtype))
        for a in (SPLITS, LEAVES, BITS, SELECTORS)
    ]
    wide = [xp.astype(a, xp.float32) for a in half]
    for ours, exact in zip(gates(*half), gates(*wide), strict=True):
        assert ours.dtype == half[0].dtype
        # To the bit: the arithmetic is float32 in both, and only the result is rounded.
        rounded = xp.astype(exact, ours.dtype)
        assert bool(xp.all(ours == rounded))
