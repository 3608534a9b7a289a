"""Settings and objectives that the tests share."""

from collections.abc import Callable
from itertools import permutations
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# How long drawing takes is a property of the machine, not of the code under test.
settings.register_profile(
    "moe", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("moe")


class TableObjective:
    """Any cost for any permutation, in lexicographic order: no structure to lean on."""

    def __init__(self, size: int, costs: Any) -> None:
        self.size = size
        keys = permutations(range(size))
        self.table = dict(zip(keys, costs, strict=True))
        self.num_calls = 0

    def __call__(self, batch: Any) -> Any:
        self.num_calls += len(batch)
        return np.array([self.table[tuple(int(i) for i in row)] for row in batch])


class QuadraticAssignment:
    """Sum of flow between positions times distance between what they use."""

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.flow = rng.uniform(size=(size, size))
        self.distance = rng.uniform(size=(size, size))

    def __call__(self, batch: Any) -> Any:
        return np.array([np.sum(self.flow * self.distance[np.ix_(p, p)]) for p in batch])


class FixedAnswers:
    """Answers every question with what it was given, however wrong."""

    def __init__(
        self, size: int, *, cost: Any = 0.0, replacement: Any = None, swap: Any = None
    ) -> None:
        self.size = size
        self.cost = cost
        self.replacement = np.zeros((size, size)) if replacement is None else replacement
        self.swap = np.zeros((size, size)) if swap is None else swap

    def __call__(self, batch: Any) -> Any:
        return np.full(len(batch), self.cost)

    def replacement_costs(self, _permutation: Any) -> Any:
        return self.replacement

    def swap_costs(self, _permutation: Any) -> Any:
        return self.swap


@pytest.fixture
def table_objective() -> Callable[..., TableObjective]:
    return TableObjective


@pytest.fixture
def quadratic_assignment() -> Callable[..., QuadraticAssignment]:
    return QuadraticAssignment


@pytest.fixture
def fixed_answers() -> Callable[..., FixedAnswers]:
    return FixedAnswers


@pytest.fixture(params=["numpy", "array_api_strict", "torch", "jax.numpy"])
def xp(request: pytest.FixtureRequest) -> ModuleType:
    library = pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return array_api_compat.array_namespace(library.ones(1))


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")
