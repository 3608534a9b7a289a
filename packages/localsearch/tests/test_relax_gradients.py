"""The gradients that the relaxed search has by hand, and its Adam."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import (
    RelaxationSettings,
    _relax,
    convergent_schedule,
    paper_schedule,
    permutation_penalty,
    sinkhorn,
)


def by_differences(function: Any, point: Any, *, step: float = 1e-6) -> Any:
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        ends = []
        for sign in (1, -1):
            moved = point.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@given(
    size=st.integers(1, 6),
    temperature=st.floats(1e-7, 2),
    num_iterations=st.integers(1, 40),
    seed=st.integers(0, 10_000),
)
def test_the_matrix_is_that_of_sinkhorn(
    size: int, temperature: float, num_iterations: int, seed: int
) -> None:
    log_weights = np.random.default_rng(seed).normal(size=(size, size))
    settings = RelaxationSettings(temperature, num_iterations)
    matrix, _ = _relax._sinkhorn_with_tape(log_weights, settings)
    expected = sinkhorn(log_weights, temperature=temperature, num_iterations=num_iterations)
    np.testing.assert_array_equal(matrix, expected.matrix)  # the same operations in order


@pytest.mark.parametrize("settings", [(1.0, 1), (0.7, 3), (0.3, 30), (0.1, 100)])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_way_back_is_the_finite_differences(settings: tuple[float, int], size: int) -> None:
    chosen = RelaxationSettings(*settings)
    log_weights, cotangent = np.random.default_rng(size).normal(size=(2, size, size))

    def cost(moved: Any) -> Any:
        return np.sum(
            cotangent
            * sinkhorn(
                moved, temperature=chosen.temperature, num_iterations=chosen.num_iterations
            ).matrix
        )

    matrix, tape = _relax._sinkhorn_with_tape(log_weights, chosen)
    found = _relax._back_through(tape, matrix, cotangent)
    expected = by_differences(cost, log_weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", [convergent_schedule, paper_schedule])
@pytest.mark.parametrize("step", [0, 1, 5, 9])
def test_the_way_back_is_that_of_torch_through_sinkhorn(
    torch: Any, schedule: Any, step: int
) -> None:
    rng = np.random.default_rng(step)
    # Small differences as in the first steps, so that little is saturated.
    log_weights, cotangent = rng.uniform(-0.05, 0.05, (6, 6)), rng.normal(size=(6, 6))
    settings = schedule(step, 10)
    leaf = torch.tensor(log_weights, requires_grad=True)
    temperature, num_iterations = settings
    result = sinkhorn(leaf, temperature=temperature, num_iterations=num_iterations)
    (result.matrix * torch.tensor(cotangent)).sum().backward()
    matrix, tape = _relax._sinkhorn_with_tape(log_weights, settings)
    found = _relax._back_through(tape, matrix, cotangent)
    # Rounding of the log matrix grows like 1 / temperature. Where the gradients of the paper's
    # schedule have vanished (1e-250), it leaves some 1e-9, below the epsilon of Adam, 1e-8.
    atol = 1e-12 / temperature * np.abs(leaf.grad.numpy()).max() + 1e-8
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=0, atol=atol)


@given(size=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_the_gradient_of_the_penalty_is_the_finite_differences(size: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).uniform(0.01, 1, size=(size, size))
    expected = by_differences(permutation_penalty, matrix)
    found = _relax._penalty_gradient(matrix)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("empty", [[], [0], [0, 2]])
def test_the_gradient_of_the_penalty_is_that_of_torch_with_zeros_too(
    torch: Any, empty: list[int]
) -> None:
    matrix = np.random.default_rng(0).dirichlet(np.ones(4), size=4)
    matrix[empty] = 0
    matrix[1, 1] = 0
    leaf = torch.tensor(matrix, requires_grad=True)
    permutation_penalty(leaf).backward()
    found = _relax._penalty_gradient(matrix)
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=1e-10)


def test_adam_is_that_of_torch(torch: Any) -> None:
    rng = np.random.default_rng(0)
    values, adam = rng.normal(size=(3, 3)), _relax._Adam(0.07)
    leaf = torch.tensor(values, requires_grad=True)
    optimizer = torch.optim.Adam([leaf], lr=0.07)
    for scale in np.geomspace(1e-9, 1e3, 30):
        gradient = scale * rng.normal(size=(3, 3))
        leaf.grad = torch.tensor(gradient)
        optimizer.step()
        values = values - adam.step(gradient)
        np.testing.assert_allclose(values, leaf.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_adam_takes_steps_of_the_learning_rate_down_a_constant_slope() -> None:
    adam = _relax._Adam(0.2)
    gradient = np.array([3.0, -1e-3, 0.0])
    for _ in range(4):
        np.testing.assert_allclose(adam.step(gradient), [0.2, -0.2, 0], rtol=1e-4)
