"""What the gates ask of an array and of the library that made it.

The library is resolved once, in the public function. Below that only `xp` and
standard attributes are touched, so that compilers can trace through.
"""

import sys
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar


class _HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...  # noqa: ANN401 each library has its own


# In a public signature: the type that goes in comes out, so a Tensor stays a Tensor.
ArrayT = TypeVar("ArrayT", bound=_HasShape)
# Inside, where arrays of unknown libraries are computed with.
Array: TypeAlias = Any


def widen(array: Array, xp: ModuleType) -> Array:
    """Convert to float32 unless the dtype is wider already."""
    return xp.astype(array, xp.result_type(array.dtype, xp.float32), copy=False)


def smallest_normal(dtype: Any, xp: ModuleType) -> float:  # noqa: ANN401 as above
    """Return the smallest number that no library flushes to 0."""
    return float(xp.finfo(dtype).smallest_normal)


def count_up(size: int, like: Array, xp: ModuleType) -> Array:
    """Return 0, 1, ..., size - 1 on the device of `like`."""
    # A JAX tracer has no device; there None means "where the others are".
    return xp.arange(size, device=getattr(like, "device", None))


def softmax(scores: Array, xp: ModuleType) -> Array:
    """Softmax over the last axis; an entry of -inf gets exactly 0."""
    exps = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    return exps / xp.sum(exps, axis=-1, keepdims=True)


def log_sigmoid(scores: Array, xp: ModuleType) -> Array:
    """Logarithm of 1 / (1 + exp(-score)): finite for every finite score, -inf for -inf."""
    # (s - |s|) / 2 is min(s, 0), with the derivative 1/2 at 0 that the minimum has not.
    size = xp.abs(scores)
    return (scores - size) / 2 - xp.log1p(xp.exp(-size))


def stop_gradient(array: Array, xp: ModuleType) -> Array:
    """Return the same values as constants: no gradient goes through."""
    if hasattr(array, "detach"):  # PyTorch
        return array.detach()
    if xp.__name__.startswith("jax."):
        # Not part of jax.numpy. Who has its arrays has imported jax: nothing is imported here.
        return sys.modules["jax"].lax.stop_gradient(array)
    return array
