"""Gradients and compilation in the libraries that have them."""

from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest

from moe_localsearch import permutation_penalty, round_to_permutation, sinkhorn


def loss(log_weights: Any, cotangent: Any, xp: ModuleType) -> Any:
    """Touch everything that has a gradient."""
    matrix, error = sinkhorn(log_weights, temperature=0.4, num_iterations=8, xp=xp)
    return xp.sum(matrix * cotangent) + permutation_penalty(matrix, xp=xp) + error


def gradient_by_differences(log_weights: Any, cotangent: Any, *, step: float = 1e-6) -> Any:
    gradient = np.empty_like(log_weights)
    for index in np.ndindex(log_weights.shape):
        ends = []
        for sign in (1, -1):
            moved = log_weights.copy()
            moved[index] += sign * step
            ends.append(loss(moved, cotangent, np))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.fixture
def inputs() -> Any:
    return np.random.default_rng(0).normal(size=(2, 4, 4))


def test_torch_gradients_are_the_finite_differences(torch: Any, inputs: Any) -> None:
    log_weights, cotangent = inputs
    xp = array_api_compat.array_namespace(torch.ones(1))
    leaf = torch.tensor(log_weights, requires_grad=True)
    loss(leaf, torch.tensor(cotangent), xp).backward()
    expected = gradient_by_differences(log_weights, cotangent)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-6, atol=1e-8)
    round_to_permutation(leaf)  # a leaf with a gradient converts


def test_jax_gradients_are_the_finite_differences_under_jit(inputs: Any) -> None:
    jax = pytest.importorskip("jax", reason="jax is not installed")
    log_weights, cotangent = inputs
    gradient = jax.jit(jax.grad(lambda leaf: loss(leaf, cotangent, jax.numpy)))
    expected = gradient_by_differences(log_weights, cotangent)
    # float32 is the default of JAX.
    found = gradient(jax.numpy.asarray(log_weights, dtype=jax.numpy.float32))
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-3, atol=1e-5)


def test_a_forbidden_entry_has_no_gradient_and_spoils_no_other(torch: Any, inputs: Any) -> None:
    log_weights = torch.tensor(inputs[0])
    log_weights[0, 1] = -torch.inf
    log_weights[2, :] = -torch.inf
    log_weights.requires_grad_()
    xp = array_api_compat.array_namespace(log_weights)
    loss(log_weights, torch.tensor(inputs[1]), xp).backward()
    assert torch.isfinite(log_weights.grad).all()
    assert log_weights.grad[0, 1] == 0


def test_torch_compiles_it_as_one_graph(torch: Any, inputs: Any) -> None:
    log_weights, cotangent = (torch.tensor(each) for each in inputs)
    xp = array_api_compat.array_namespace(log_weights)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [log_weights.clone().requires_grad_() for _ in range(2)]
    for function, leaf in zip((loss, compiled), leaves, strict=True):
        function(leaf, cotangent, xp).backward()
    np.testing.assert_allclose(leaves[1].grad.numpy(), leaves[0].grad.numpy(), rtol=1e-10)
