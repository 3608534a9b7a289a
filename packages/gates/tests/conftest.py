"""One hypothesis profile, and the array libraries that the tests run on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat
import hypothesis
import numpy as np
import pytest

# How long drawing takes is a property of the machine, not of the code under test.
hypothesis.settings.register_profile(
    "gates",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("gates")

INTEROP = "needs {}: install the dependency group `interop`"


class Library(NamedTuple):
    """An array library, and how to move arrays there and back."""

    name: str
    xp: Any
    asarray: Callable[[Any], Any]
    jit: Callable[[Callable[..., Any]], Callable[..., Any]]

    def run(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Call `function` on `arrays`, traced where the library is slow without."""
        return self.jit(function)(*(self.asarray(array) for array in arrays))


def _as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _load(name: str) -> Library:
    module = pytest.importorskip(name, reason=INTEROP.format(name))
    if name == "jax":
        module.config.update("jax_enable_x64", True)  # noqa: FBT003 how JAX spells it
        return Library(name, module.numpy, module.numpy.asarray, module.jit)
    xp = array_api_compat.array_namespace(module.asarray(0.0))
    return Library(name, xp, lambda array: module.asarray(np.asarray(array)), _as_is)


@pytest.fixture(scope="session", params=["numpy", "array_api_strict", "torch", "jax"])
def lib(request: pytest.FixtureRequest) -> Library:
    return _load(request.param)


@pytest.fixture(scope="session", params=["numpy", "array_api_strict", "torch"])
def eager_lib(request: pytest.FixtureRequest) -> Library:
    """Skip JAX where shapes are drawn at random: it compiles for each of them."""
    return _load(request.param)


@pytest.fixture(scope="session")
def torch_lib() -> Library:
    return _load("torch")


@pytest.fixture(scope="session")
def numpy_lib() -> Library:
    return _load("numpy")


@pytest.fixture(scope="session")
def gradient_lib(request: pytest.FixtureRequest) -> Library:
    """Return the library that the test names: one that differentiates."""
    return _load(request.param)
