"""Types and checks of the functions that work for any array library."""

from types import ModuleType
from typing import Any, TypeVar

from array_api_compat import array_namespace

ArrayT = TypeVar("ArrayT", bound=Any)


def namespace_of(name: str, array: ArrayT, xp: ModuleType | None) -> ModuleType:
    """Return the array namespace of `array`, which must hold real floats in a (..., n, n)."""
    xp = array_namespace(array) if xp is None else xp
    if not xp.isdtype(array.dtype, "real floating"):
        msg = f"`{name}` must have a real floating dtype, got {array.dtype}."
        raise TypeError(msg)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        shape = tuple(array.shape)
        msg = f"`{name}` must have shape (*batch, n, n) with n >= 1, got {shape}."
        raise ValueError(msg)
    return xp
