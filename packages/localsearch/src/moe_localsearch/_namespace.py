"""Types and checks of the functions that work for any array library."""

from types import ModuleType
from typing import Any, TypeVar

from array_api_compat import array_namespace, is_array_api_obj

ArrayT = TypeVar("ArrayT", bound=Any)


def resolve(xp: ModuleType | None, **arrays: Any) -> Any:  # noqa: ANN401  # a module
    """Return `xp`, or the array namespace that the named `arrays` share."""
    if not all(hasattr(array, "dtype") for array in arrays.values()):
        raise TypeError(_why_no_namespace(arrays))
    if xp is not None:
        return xp
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        raise TypeError(_why_no_namespace(arrays)) from None


def _why_no_namespace(arrays: dict[str, Any]) -> str:
    """Name the argument that is no array, or those that are of different libraries."""
    for name, array in arrays.items():
        if not is_array_api_obj(array):
            allowed = "an array of NumPy, PyTorch, JAX or another array-API library"
            return f"`{name}` must be {allowed}, got {type(array).__name__}."
    names = " and ".join(f"`{name}`" for name in arrays)
    types = " and ".join(type(array).__name__ for array in arrays.values())
    return f"{names} must be arrays of one library, got {types}."


def check_matrices(name: str, array: ArrayT, xp: ModuleType) -> None:
    """Refuse `array` unless it holds real floats in a shape (*batch, n, n)."""
    if not xp.isdtype(array.dtype, "real floating"):
        msg = f"`{name}` must have a real floating dtype, got {array.dtype}."
        raise TypeError(msg)
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 1:
        shape = tuple(array.shape)
        msg = f"`{name}` must have shape (*batch, n, n) with n >= 1, got {shape}."
        raise ValueError(msg)
