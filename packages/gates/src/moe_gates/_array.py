"""What the gates ask of an array and of the library that made it.

The library is resolved once, in the public function. Below that only `xp` and
standard attributes are touched, so that compilers can trace through.
"""

import math
import sys
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar


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


def device_of(array: Array) -> Any:  # noqa: ANN401 each library has its own
    """Return the device of an array."""
    # In JAX None means "where the others are": a tracer has no device, that of an array on
    # several is a sharding that fits no other shape, and what is put on one stays there.
    return None if hasattr(array, "aval") else getattr(array, "device", None)


def count_up(size: int, like: Array, xp: ModuleType) -> Array:
    """Return 0, 1, ..., size - 1 on the device of `like`."""
    return xp.arange(size, device=device_of(like))


def take_rows(table: Array, index: Array, xp: ModuleType) -> Array:
    """Return the rows of a table at indices >= 0, in one axis."""
    # For PyTorch, array-api-compat (1.16) first looks for negative indices, which takes
    # longer than to take a few rows.
    if hasattr(xp, "index_select"):
        return xp.index_select(table, 0, index)
    return xp.take(table, index, axis=0)


def whole_part(array: Array, xp: ModuleType) -> Array:
    """Cut numbers below 2e9 in magnitude to integers, of the same dtype, without a gradient.

    What a softmax subtracts from its scores changes nothing but rounding. As an integer no
    framework differentiates it, which would be work for a sum of zeros.
    """
    return xp.astype(xp.astype(array, xp.int32), array.dtype)


def mean_over_rows(values: Array, xp: ModuleType) -> Array:
    """Mean of one value a row; 0 without rows."""
    # Divided first: a sum over no rows is 0 whatever they are divided by. Exporters
    # (torch 2.13) take the number of rows to be at least 2, and drop a guard against 0.
    return xp.sum(values / max(math.prod(values.shape), 1))


def add_slots(array: Array, axis: Literal[-2, -1]) -> Array:
    """Sum over the few slots on `axis`, first to last."""
    # In this order whatever lies beside the axis, so that different routes to the same
    # numbers have the same sum, to the bit. Libraries sum more than two in orders of their own.
    last = axis == -1
    slots = [array[..., i] if last else array[..., i, :] for i in range(array.shape[axis])]
    return sum(slots[1:], start=slots[0])


def softmax(scores: Array, xp: ModuleType) -> Array:
    """Softmax over the last axis; an entry of -inf gets exactly 0."""
    if hasattr(xp, "softmax"):  # PyTorch: a call instead of five
        return xp.softmax(scores, -1)
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
