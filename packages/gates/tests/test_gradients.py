"""Gradients of torch, of JAX and finite differences agree, and are never NaN."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from moe_gates import (
    comet_gate,
    comet_route,
    cosine_scores,
    dselect_k_gate,
    entropy_penalty,
    exact_k_gate,
    load_balance_penalty,
    mix,
    mutual_information_penalty,
    normalize,
    permute,
    relu_gate,
    score_scale,
    smooth_step,
    softmax_gate,
    subset_marginals,
    to_dense,
    to_sparse,
    top_k_gate,
    top_k_sparsemax_gate,
    total_variation,
    tree_top_k_gate,
    trimmed_lasso_penalty,
    unreachable_penalty,
    z_penalty,
)
from moe_gates._array import stop_gradient

RNG = np.random.default_rng(0)
COTANGENT = RNG.normal(size=5)
MATRIX = RNG.dirichlet(np.ones(5), size=5)
ORDER = RNG.permutation(5)
SPLITS, LEAVES = RNG.normal(size=(6, 2, 4)), RNG.normal(size=(6, 2, 5))
BIAS, SLOT_COTANGENT = RNG.normal(size=5), RNG.normal(size=(2, 5))
ROWS, EXPERTS, TEMPERATURE = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3)), np.asarray(0.5)
BITS, SELECTORS = RNG.normal(size=(6, 2, 3)), RNG.normal(size=(6, 2))
# Away from 0, where the entropy bends too much for finite differences.
WEIGHTS = RNG.dirichlet(np.full(5, 3.0), size=(6, 2))
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


# Functions of scores alone, of which each expert's answer counts differently.
GATES: dict[str, Callable[..., Any]] = {
    "softmax": softmax_gate,
    "switch": partial(top_k_gate, k=1, renormalize=False),
    "sigmoid": partial(top_k_gate, k=2, affinity="sigmoid", renormalize=False),
    "sigmoid_groups": partial(top_k_gate, k=3, affinity="sigmoid", num_groups=5, num_groups_kept=4),
    "sparsemax": partial(top_k_sparsemax_gate, k=3),
    "relu": partial(relu_gate, k=2),
    "marginals": partial(subset_marginals, k=2),
}


def gate_loss(gate: Callable[..., Any]) -> Loss:
    def loss(lib: Any, scores: Any) -> Any:
        cotangent = lib.xp.astype(lib.asarray(COTANGENT), scores.dtype)
        return lib.xp.sum(gate(scores, xp=lib.xp) * cotangent)

    return loss


def biased_loss(lib: Any, scores: Any, noise: Any) -> Any:
    gate = top_k_gate(scores, k=3, noise=noise, bias=lib.asarray(BIAS), xp=lib.xp)
    return lib.xp.sum(gate * lib.asarray(COTANGENT))


def cosine_loss(lib: Any, rows: Any, experts: Any, temperature: Any) -> Any:
    scores = cosine_scores(rows, experts, temperature=temperature, xp=lib.xp)
    return lib.xp.sum(scores * scores * lib.asarray(COTANGENT))


def tree_top_k_loss(lib: Any, splits: Any, leaves: Any) -> Any:
    gate = tree_top_k_gate(splits, leaves, k=3, xp=lib.xp)
    penalty = entropy_penalty(gate.slot_probabilities, xp=lib.xp)
    slots = lib.xp.sum(gate.slot_weights * lib.asarray(SLOT_COTANGENT))
    return lib.xp.sum(gate.weights * lib.asarray(COTANGENT)) + slots + penalty


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
    *((gate_loss(gate), (LEAVES,)) for gate in GATES.values()),
    (gate_loss(partial(subset_marginals, k=5)), (LEAVES,)),
    (biased_loss, (LEAVES, LEAVES[::-1].copy())),
    (cosine_loss, (ROWS, EXPERTS, TEMPERATURE)),
    (tree_top_k_loss, (SPLITS, LEAVES)),
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


EXTREMES = np.asarray(
    [
        *1e4 * np.sign(LEAVES[:, 0]),
        [-1e4] * 5,
        [0.0] * 5,
        [0.0, 1e4, 2e4, 3e4, 4e4],
        [0.0, -np.inf, 1.0, -np.inf, 2.0],
        [-np.inf, 1e4, -1e4, 0.0, 0.0],
    ]
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_extreme_scores_give_finite_gradients(
    gradient_lib: Any, gate: Callable[..., Any], dtype: Any
) -> None:
    arrays = (EXTREMES.astype(dtype),)
    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, gate_loss(gate), arrays)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_logistic_trees_give_finite_gradients(gradient_lib: Any, size: float, dtype: Any) -> None:
    arrays = [(size * np.sign(scores)).astype(dtype) for scores in (SPLITS, LEAVES)]
    for gradient in BY_LIBRARY[gradient_lib.name](gradient_lib, tree_top_k_loss, arrays):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_vector_of_zeros_gets_a_cosine_gradient_of_0(gradient_lib: Any) -> None:
    rows, experts = ROWS * np.asarray([[0.0]] + [[1.0]] * 5), EXPERTS * (np.arange(5) != 2)[:, None]
    arrays = (rows, experts, TEMPERATURE)
    of_rows, of_experts, _ = BY_LIBRARY[gradient_lib.name](gradient_lib, cosine_loss, arrays)
    assert not np.any(of_rows[0])
    assert not np.any(of_experts[2])
    assert np.all(np.any(of_rows[1:], axis=-1))
    assert np.all(np.isfinite(of_rows))
    assert np.all(np.isfinite(of_experts))


def subset_chances(scores: Any, k: int) -> tuple[Any, Any]:
    """All subsets as rows of 0 and 1, and their probabilities."""
    experts = np.arange(scores.size)
    every = np.asarray([np.isin(experts, s) for s in itertools.combinations(experts, k)])
    exps = np.exp(np.asarray([scores[chosen].sum() for chosen in every]))
    return every.astype(float), exps / exps.sum()


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_exactly_k_has_the_covariance_of_all_subsets_as_its_gradient(
    gradient_lib: Any, k: int, *, drawn: bool
) -> None:
    scores, xp = LEAVES[:, 0], gradient_lib.xp
    uniforms = gradient_lib.asarray(RNG.random((6, 4))) if drawn else None

    def loss(lib: Any, scores: Any) -> Any:
        weights = exact_k_gate(scores, k=k, uniforms=uniforms, xp=xp)
        return xp.sum(weights * lib.asarray(COTANGENT))

    (got,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (scores,))
    for row, gradient in zip(scores, got, strict=True):
        every, chances = subset_chances(row, k)
        mean = chances @ every
        covariance = (chances[:, None] * every).T @ every - np.outer(mean, mean)
        np.testing.assert_allclose(gradient, covariance @ COTANGENT / k, atol=1e-14)


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_bias_gets_no_gradient(gradient_lib: Any) -> None:
    def loss(lib: Any, scores: Any, bias: Any) -> Any:
        weights = top_k_gate(scores, k=2, affinity="sigmoid", bias=bias, xp=lib.xp)
        return lib.xp.sum(weights * lib.asarray(COTANGENT))

    arrays = (LEAVES, BIAS)
    of_scores, of_bias = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, arrays)
    assert np.any(of_scores)
    assert not np.any(of_bias)


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_sigmoid_has_its_largest_slope_at_0(gradient_lib: Any) -> None:
    loss, arrays = gate_loss(GATES["sigmoid"]), (np.zeros((1, 5)),)
    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, arrays)
    np.testing.assert_allclose(gradient[0, :2], COTANGENT[:2] / 4, rtol=1e-15)


@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_stopped_gradient_is_that_of_a_constant(gradient_lib: Any) -> None:
    def loss(lib: Any, scores: Any) -> Any:
        return lib.xp.sum(stop_gradient(scores, lib.xp) * scores)

    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (SELECTORS,))
    np.testing.assert_array_equal(gradient, SELECTORS)


def test_stopping_a_gradient_changes_no_value(lib: Any) -> None:
    got = lib.run(lambda a: stop_gradient(a, lib.xp), SELECTORS)
    np.testing.assert_array_equal(np.asarray(got), SELECTORS)


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


@pytest.mark.parametrize("value", [0.0, 1e-200])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_a_row_of_almost_nothing_normalizes_with_a_finite_gradient(
    gradient_lib: Any, value: float
) -> None:
    def loss(lib: Any, weights: Any) -> Any:
        return lib.xp.sum(normalize(weights, xp=lib.xp) * lib.asarray(COTANGENT))

    (gradient,) = BY_LIBRARY[gradient_lib.name](gradient_lib, loss, (np.full((2, 5), value),))
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("gradient_lib", BY_LIBRARY, indirect=True)
def test_half_precision_is_float32_rounded(gradient_lib: Any, dtype: str) -> None:
    xp = gradient_lib.xp

    def gates(splits: Any, leaves: Any, bits: Any, selectors: Any) -> list[Any]:
        comet = comet_gate(splits, leaves, gamma=3.0, xp=xp)
        dselect_k = dselect_k_gate(bits, selectors, num_experts=5, gamma=3.0, xp=xp)
        one_slot = [gate(leaves, xp=xp) for gate in GATES.values()]
        cosine = cosine_scores(bits, bits[0, ...], temperature=0.1, xp=xp)
        trees = tree_top_k_gate(splits, leaves, k=2, xp=xp)
        exact = exact_k_gate(leaves, k=3, xp=xp)
        sparse = [top_k_gate(leaves, k=2, xp=xp), exact, cosine]
        return [*comet, *dselect_k, *trees, *one_slot, *sparse]

    half = [
        xp.astype(gradient_lib.asarray(a), getattr(xp, dtype))
        for a in (SPLITS, LEAVES, BITS, SELECTORS)
    ]
    wide = [xp.astype(a, xp.float32) for a in half]
    run = gradient_lib.jit(gates)
    for ours, exact in zip(run(*half), run(*wide), strict=True):
        assert ours.dtype == half[0].dtype
        # To the bit: the arithmetic is float32 in both, and only the result is rounded.
        rounded = xp.astype(exact, ours.dtype)
        assert bool(xp.all(ours == rounded))
