"""A second device without a second device: tensors in CPU memory that meet only their own kind.

`register` makes PyTorch know the device for the rest of the process, so tests of it run in a
process of their own. It finds what would fail on a GPU: a tensor that stays on the CPU, or is made
there, and meets one of the device.
"""

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"
# What takes a tensor from one device to another, or a number out of it.
MOVES = {"aten::_to_copy", "aten::copy_"}
NUMBERS = {"aten::_local_scalar_dense"}
# Whose second argument, a list of indices, may be on the CPU, as on a GPU.
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put"}


# Kept, because what it has registered goes with it.
LIBRARY = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
OPERATORS = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


class Elsewhere(Tensor):
    """A tensor of the second device; `held` is where its numbers are."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, *args, **(kwargs or {}))


class _Module(backend_registration._DummyBackendModule):
    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]

    @staticmethod
    def synchronize() -> None:
        """Return at once: nothing is ever under way."""

    # Random numbers are the CPU's.
    @staticmethod
    def get_rng_state(_device: int) -> Tensor:
        return torch.get_rng_state()

    @staticmethod
    def set_rng_state(state: Tensor, _device: int) -> None:
        torch.set_rng_state(state)


def register() -> None:
    """Make the device known to PyTorch; once a process."""
    setup = backend_registration._setup_privateuseone_for_python_backend
    setup(NAME, backend_module=_Module())
    LIBRARY.fallback(_run, "PrivateUse1")  # type: ignore[no-untyped-call]
    # Its default lets an empty tensor grow, of which the one that holds it would not know.
    arange = torch.ops.aten.arange
    for name, overload in (
        ("arange", arange.default),
        ("arange.start", arange.start),
        ("arange.start_step", arange.start_step),
    ):
        OPERATORS.impl(name, partial(_run, overload), "PrivateUse1")  # type: ignore[no-untyped-call]
    # Autocast is accepted, and changes nothing.
    LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # type: ignore[no-untyped-call]


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func._schema.name
    checked = (args[0], *args[2:]) if name in INDEXING else (args, kwargs)
    tensors = [each for each in tree_leaves(checked) if isinstance(each, Tensor)]
    strangers = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim]
    if strangers and name not in MOVES:
        msg = f"{name}: a tensor of {strangers[0].shape} is on the CPU, others are {NAME}."
        raise RuntimeError(msg)
    found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    target = kwargs.get("device")
    if name in NUMBERS or (name in MOVES and target is not None and target.type == "cpu"):
        return found
    if name == "aten::copy_":
        return args[0]
    found = tree_map(lambda each: Elsewhere(each) if isinstance(each, Tensor) else each, found)
    if any(each.alias_info is not None for each in func._schema.returns):
        return return_and_correct_aliasing(func, args, kwargs, found)  # type: ignore[no-untyped-call]
    return found


def _held(value: Any) -> Any:
    if isinstance(value, Elsewhere):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value
