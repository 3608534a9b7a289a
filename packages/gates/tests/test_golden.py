"""Values and gradients of the authors' released gates. See golden/README.md for tolerances."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_gates import (
    comet_gate,
    dselect_k_gate,
    entropy_penalty,
    leaf_order,
    mix,
    normalize,
    permute,
    top_k_gate,
    unreachable_penalty,
)

# Beside the checkout. Not `parents[4]`: an unpacked sdist may lie less deep.
BESIDE_CHECKOUT = Path(__file__).parent / "../../../../shared"
SHARED = Path(os.environ.get("MOE_SHARED_DIR", BESIDE_CHECKOUT))
ABSENT = "no reference values: set MOE_SHARED_DIR to the folder that holds golden/"
WEIGHT_TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 1e-3  # of the largest entry
VARIANTS = ["identity", "permuted"]

# Weights and slot probabilities of x, for one of the variants.
Gate = Callable[[Any], tuple[Any, Any]]


def golden(kind: str) -> list[Any]:
    names = sorted((SHARED / "golden").glob(f"{kind}_*.npz"))
    if not names:
        return [pytest.param(None, marks=pytest.mark.skip(reason=ABSENT))]
    return [pytest.param(name, id=name.stem) for name in names]


def load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def comet(case: dict[str, Any], variant: str, lib: Any) -> Gate:
    xp, order = lib.xp, list(leaf_order(int(case["n"])))
    split_weight = lib.asarray(np.moveaxis(case["node_weight"], -1, 0))  # (k, n-1, d)
    leaf_weight = lib.asarray(np.moveaxis(case["leaf_weight"], -1, 0)[:, order])
    split_bias = lib.asarray(case["node_bias"].T)
    leaf_bias = lib.asarray(case["leaf_bias"].T[:, order])
    permutation = lib.asarray(np.argmax(case["permutation"], axis=-1))

    def gate(x: Any) -> tuple[Any, Any]:
        column = x[:, None, :, None]
        splits = (split_weight @ column)[..., 0] + split_bias
        leaves = (leaf_weight @ column)[..., 0] + leaf_bias
        answer = comet_gate(splits, leaves, gamma=float(case["gamma"]), xp=xp)
        if variant == "identity":
            return answer.weights, answer.slot_probabilities
        permuted = xp.sum(permute(answer.slot_weights, permutation, xp=xp), axis=-2)
        return normalize(permuted, xp=xp), answer.slot_probabilities

    return gate


def dselect_k(case: dict[str, Any], variant: str, lib: Any) -> Gate:
    xp, num_slots = lib.xp, int(case["k"])
    bit_weight, bit_bias, weight, bias = (
        lib.asarray(case[name]) for name in ("z_kernel", "z_bias", "w_kernel", "w_bias")
    )
    matrices = lib.asarray(case["permutation"])

    def gate(x: Any) -> tuple[Any, Any]:
        bits = xp.reshape(x @ bit_weight + bit_bias, (x.shape[0], num_slots, -1))
        selectors = x @ weight + bias
        answer = dselect_k_gate(
            bits, selectors, num_experts=int(case["n"]), gamma=float(case["gamma"]), xp=xp
        )
        if variant == "identity":
            return answer.weights, answer.slot_probabilities
        return xp.sum(mix(answer.slot_weights, matrices, xp=xp), axis=-2), answer.slot_probabilities

    return gate


def top_k(case: dict[str, Any], variant: str, lib: Any) -> Gate:
    weight, bias = lib.asarray(case["weight"].T), lib.asarray(case["bias"])
    permutation = lib.asarray(np.argmax(case["permutation"][0], axis=-1))

    def gate(x: Any) -> tuple[Any, Any]:
        weights = top_k_gate(x @ weight + bias, k=int(case["k"]), xp=lib.xp)
        if variant == "permuted":
            weights = normalize(permute(weights, permutation, xp=lib.xp), xp=lib.xp)
        return weights, None

    return gate


GATES = {"comet": comet, "dselectk": dselect_k, "topk": top_k}
WITH_GRADIENTS = golden("comet") + golden("dselectk")


def gate_of(path: Path, case: dict[str, Any], variant: str, lib: Any) -> Gate:
    return GATES[path.stem.split("_")[0]](case, variant, lib)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", WITH_GRADIENTS + golden("topk"))
def test_weights(eager_lib: Any, path: Path, variant: str) -> None:
    case = load(path)
    weights, _ = gate_of(path, case, variant, eager_lib)(eager_lib.asarray(case["x"]))
    expected = case[f"weights_{variant}"]
    np.testing.assert_allclose(np.asarray(weights), expected, atol=WEIGHT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", WITH_GRADIENTS)
def test_gradients(torch_lib: Any, path: Path, variant: str) -> None:
    case = load(path)
    x = torch_lib.asarray(case["x"]).requires_grad_()
    weights, _ = gate_of(path, case, variant, torch_lib)(x)
    (weights * torch_lib.asarray(case["cotangent"])).sum().backward()
    expected = case[f"grad_x_{variant}"]
    atol = GRADIENT_TOLERANCE * np.max(np.abs(expected))
    np.testing.assert_allclose(x.grad.numpy(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", golden("comet"))
def test_comet_penalty(eager_lib: Any, path: Path, variant: str) -> None:
    case = load(path)
    _, probabilities = comet(case, variant, eager_lib)(eager_lib.asarray(case["x"]))
    penalty = float(case["entropy_reg"]) * float(entropy_penalty(probabilities))
    expected = float(case[f"entropy_reg_loss_{variant}"])
    # float32 on both sides: 1e-5 of the value, and of the offset where it is 0.
    np.testing.assert_allclose(penalty, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", golden("dselectk"))
def test_dselect_k_penalty(eager_lib: Any, path: Path, variant: str) -> None:
    case = load(path)
    _, probabilities = dselect_k(case, variant, eager_lib)(eager_lib.asarray(case["x"]))
    penalty = float(case["entropy_reg"]) * float(entropy_penalty(probabilities))
    num_experts = int(case["n"])
    if num_experts & (num_experts - 1):
        penalty += float(case["zeta"]) * float(unreachable_penalty(probabilities))
    np.testing.assert_allclose(penalty, float(case[f"reg_loss_{variant}"]), rtol=1e-4, atol=1e-6)
