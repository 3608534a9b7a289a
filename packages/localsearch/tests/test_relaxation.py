"""Sinkhorn, its schedules and penalty, on any array library that is installed."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from moe_localsearch import (
    convergent_schedule,
    paper_schedule,
    permutation_matrix,
    permutation_penalty,
    round_to_permutation,
    sinkhorn,
)

matrices = st.integers(1, 5).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(-20, 20, width=32))
)


def sinkhorn_by_scipy(log_weights: Any, temperature: float, num_iterations: int) -> Any:
    log_matrix = log_weights / temperature
    for _ in range(num_iterations):
        log_matrix = log_matrix - logsumexp(log_matrix, axis=-1, keepdims=True)
        log_matrix = log_matrix - logsumexp(log_matrix, axis=-2, keepdims=True)
    return np.exp(log_matrix)


@given(log_weights=matrices, num_iterations=st.integers(1, 30))
def test_columns_sum_to_one_and_the_rows_err_by_what_is_reported(
    log_weights: Any, num_iterations: int
) -> None:
    matrix, error = sinkhorn(log_weights, temperature=0.5, num_iterations=num_iterations)
    assert np.all(matrix >= 0)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(error, np.abs(matrix.sum(axis=1) - 1).max(), atol=1e-15)


@given(log_weights=matrices, num_iterations=st.integers(1, 10))
def test_it_is_the_plain_recursion(log_weights: Any, num_iterations: int) -> None:
    result = sinkhorn(log_weights, temperature=0.7, num_iterations=num_iterations)
    expected = sinkhorn_by_scipy(log_weights, 0.7, num_iterations)
    np.testing.assert_allclose(result.matrix, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [4, 16, 64])
@pytest.mark.parametrize("step", [0, 50, 100])
def test_the_convergent_schedule_converges_and_the_papers_does_not(size: int, step: int) -> None:
    log_weights = np.random.default_rng(size).normal(size=(50, size, size))
    temperature, num_iterations = convergent_schedule(step, 100)
    converged = sinkhorn(log_weights, temperature=temperature, num_iterations=num_iterations)
    assert converged.marginal_error.max() < 0.03
    assert np.median(converged.marginal_error) < 0.01
    temperature, num_iterations = paper_schedule(step, 100)
    papers = sinkhorn(log_weights, temperature=temperature, num_iterations=num_iterations)
    assert papers.marginal_error.max() > 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_the_limit_is_that_of_python_optimal_transport(temperature: float) -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed")
    costs = np.random.default_rng(0).normal(size=(12, 12))
    marginal = np.full(12, 1 / 12)
    limit = 12 * ot.bregman.sinkhorn_log(
        marginal, marginal, costs, temperature, numItermax=3000, stopThr=1e-14, warn=False
    )
    result = sinkhorn(-costs, temperature=temperature, num_iterations=3000)
    np.testing.assert_allclose(result.matrix, limit, atol=1e-12)
    assert result.marginal_error < 1e-12


def test_a_low_temperature_rounds_to_the_assignment() -> None:
    log_weights = np.random.default_rng(0).normal(size=(6, 6))
    matrix, _ = sinkhorn(log_weights, temperature=0.02, num_iterations=2000)
    expected = linear_sum_assignment(log_weights, maximize=True)[1]
    np.testing.assert_array_equal(round_to_permutation(matrix), expected)


def test_noise_is_added_to_the_log_weights() -> None:
    rng = np.random.default_rng(0)
    log_weights, noise = rng.normal(size=(2, 3, 4, 4))
    with_noise = sinkhorn(log_weights, temperature=0.5, num_iterations=7, noise=noise)
    added = sinkhorn(log_weights + noise, temperature=0.5, num_iterations=7)
    np.testing.assert_array_equal(with_noise.matrix, added.matrix)
    assert with_noise.marginal_error.shape == (3,)


def test_the_matrix_has_the_dtype_of_the_weights_whatever_else_is_given() -> None:
    weights, noise = np.zeros((3, 3), np.float32), np.random.default_rng(0).gumbel(size=(3, 3))
    settings: Any = {"temperature": np.float64(0.5), "num_iterations": np.int64(3)}
    result = sinkhorn(weights, **settings, noise=noise)
    assert result.matrix.dtype == result.marginal_error.dtype == np.float32
    with pytest.raises(TypeError, match="`noise` must have a real floating dtype"):
        sinkhorn(weights, **settings, noise=np.ones((3, 3), dtype=np.int64))


def test_forbidden_entries_stay_zero_and_a_forbidden_row_is_not_nan() -> None:
    log_weights = np.zeros((3, 3))
    log_weights[0, 1:] = -np.inf
    result = sinkhorn(log_weights, temperature=1.0, num_iterations=200)
    np.testing.assert_allclose(result.matrix[0], [1, 0, 0], atol=0.01)
    log_weights[0, 0] = -np.inf
    matrix, error = sinkhorn(log_weights, temperature=1.0, num_iterations=5)
    np.testing.assert_array_equal(matrix[0], 0)
    assert error == 1
    assert np.isfinite(permutation_penalty(matrix))


def test_every_library_gives_the_numbers_of_numpy(xp: ModuleType) -> None:
    log_weights = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    expected = sinkhorn(log_weights, temperature=0.3, num_iterations=12)
    array = xp.asarray(log_weights)
    result = sinkhorn(array, temperature=0.3, num_iterations=12, xp=xp)
    inferred = sinkhorn(array, temperature=0.3, num_iterations=12)
    for given_xp, without, numbers in zip(result, inferred, expected, strict=True):
        assert given_xp.dtype == xp.float32
        assert type(given_xp) is type(array)
        np.testing.assert_allclose(np.asarray(given_xp), numbers, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(without), np.asarray(given_xp))
    penalty = permutation_penalty(result.matrix)
    assert type(penalty) is type(array)
    np.testing.assert_allclose(np.asarray(penalty), permutation_penalty(expected[0]), rtol=1e-5)
    rounded = round_to_permutation(result.matrix)
    assert type(rounded) is np.ndarray
    np.testing.assert_array_equal(rounded, round_to_permutation(expected.matrix))


def test_rounding_undoes_the_matrix_of_a_permutation(xp: ModuleType) -> None:
    permutations = np.array([[2, 0, 1, 3], [0, 1, 2, 3]])
    matrix = permutation_matrix(permutations, xp=xp, dtype=xp.float32)
    assert matrix.dtype == xp.float32
    np.testing.assert_array_equal(round_to_permutation(matrix), permutations)
    weights = xp.asarray([[1.0, 2.0, 3.0, 4.0]], dtype=xp.float32)
    np.testing.assert_array_equal(np.asarray(weights @ matrix[0, ...]), [[2, 3, 1, 4]])


@given(matrix=matrices)
def test_rounding_maximises_the_sum(matrix: Any) -> None:
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    found = round_to_permutation(matrix)
    assert matrix[rows, found].sum() == pytest.approx(matrix[rows, columns].sum())


def test_the_penalty_is_zero_at_a_permutation_and_largest_at_the_uniform_matrix() -> None:
    permutation = permutation_matrix([1, 2, 0], xp=np, dtype=np.float64)
    assert abs(permutation_penalty(permutation)) < 1e-5
    uniform = permutation_penalty(np.full((3, 3), 1 / 3))
    assert uniform == pytest.approx(2 * 3 * math.log(3), rel=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = sinkhorn(rng.normal(size=(3, 3)), temperature=0.5, num_iterations=50).matrix
        assert 0 < permutation_penalty(matrix) < uniform


@pytest.mark.parametrize(
    ("step", "temperature", "num_iterations"), [(0, 1e-3, 20), (3, 10**-4.2, 59), (10, 1e-7, 150)]
)
def test_the_papers_schedule_to_the_letter(
    step: int, temperature: float, num_iterations: int
) -> None:
    settings = paper_schedule(step, 10)
    assert settings.temperature == pytest.approx(temperature, rel=1e-12)
    assert settings.num_iterations == num_iterations


def test_the_convergent_schedule_is_geometric_and_iterates_more_when_colder() -> None:
    steps = [convergent_schedule(step, 4) for step in range(5)]
    temperatures = np.array([each.temperature for each in steps])
    np.testing.assert_allclose(temperatures[1:] / temperatures[:-1], 0.03**0.25)
    assert steps[0] == (1.0, 20)
    assert steps[-1] == (0.03, 334)
    iterations = [each.num_iterations for each in steps]
    assert iterations == sorted(iterations)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": 0.0}, "`temperature` must be finite and > 0, got 0"),
            ({"temperature": math.nan}, "`temperature` must be finite and > 0, got nan"),
            ({"num_iterations": 0}, "`num_iterations` must be >= 1, got 0"),
            ({"noise": np.zeros(3)}, r"`noise` must have the shape of .*\(3, 3\), got \(3,\)"),
        ],
    )
    def test_sinkhorn(self, change: dict[str, Any], message: str) -> None:
        options = {"temperature": 1.0, "num_iterations": 5} | change
        with pytest.raises(ValueError, match=message):
            sinkhorn(np.zeros((3, 3)), **options)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"temperature": "1"}, "`temperature` must be a real number, got '1'"),
            ({"noise": [[0.0]]}, "`noise` must be an array of NumPy, .* got list"),
        ],
    )
    def test_types_of_sinkhorn(self, change: dict[str, Any], message: str) -> None:
        options = {"temperature": 1.0, "num_iterations": 5} | change
        with pytest.raises(TypeError, match=message):
            sinkhorn(np.zeros((1, 1)), **options)

    def test_arrays_of_two_libraries(self) -> None:
        noise = pytest.importorskip("array_api_strict").zeros((2, 2))
        with pytest.raises(TypeError, match="`log_weights` and `noise` must be arrays of one lib"):
            sinkhorn(np.zeros((2, 2)), temperature=1.0, num_iterations=5, noise=noise)

    @pytest.mark.parametrize(
        "function",
        [lambda m: sinkhorn(m, temperature=1.0, num_iterations=1), permutation_penalty],
    )
    def test_matrices(self, function: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"must have shape \(\*batch, n, n\).* got \(2, 3\)"):
            function(np.zeros((2, 3)))
        with pytest.raises(TypeError, match=r"`\w+` must be an array of NumPy, .* got list"):
            function([[0.0]])
        with pytest.raises(TypeError, match="must have a real floating dtype, got int64"):
            function(np.zeros((2, 2), dtype=np.int64))

    @pytest.mark.parametrize("schedule", [paper_schedule, convergent_schedule])
    def test_schedules(self, schedule: Callable[..., Any]) -> None:
        with pytest.raises(ValueError, match=r"`step` must be in \[0, num_steps=5\], got 6"):
            schedule(6, 5)
        with pytest.raises(ValueError, match="`num_steps` must be >= 1, got 0"):
            schedule(0, 0)

    def test_rounding(self) -> None:
        with pytest.raises(ValueError, match=r"`matrix` must be finite, got nan at \[0, 0\]"):
            round_to_permutation(np.full((2, 2), np.nan))
        with pytest.raises(ValueError, match=r"`matrix` must be square"):
            round_to_permutation(np.zeros((2, 3)))

    def test_permutation_matrix(self) -> None:
        with pytest.raises(ValueError, match=r"`permutation` .* got 2 at \[1\]"):
            permutation_matrix([0, 2], xp=np, dtype=np.float64)
