"""Whether numba, which is an extra, can compute something here: it reads memory of the CPU."""

import importlib
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn

from moe_runtime import _requirements


def takes_numba(tensors: Iterable[Tensor]) -> bool:
    """Whether there is numba, and each tensor is plain memory of the CPU."""
    plain = all(type(each) in {Tensor, nn.Parameter} and each.is_cpu for each in tensors)
    return plain and has_numba()


@cache
def has_numba() -> bool:
    """Whether numba is installed, and for this NumPy."""
    try:
        importlib.import_module("moe_runtime._numba_rows")
    except ImportError:
        return False
    return True


def check_numba(x: Tensor, purpose: str) -> None:
    """Refuse to take numba, which was asked for, where it is missing or `x` is elsewhere.

    Raises
    ------
    ModuleNotFoundError
        If numba is not installed.
    ValueError
        If `x` is not on the CPU.
    """
    _requirements.require("numba", extra="numba", purpose=purpose)
    if x.device.type != "cpu":
        msg = f"`kernel='numba'` computes on the CPU, got an input on {x.device}."
        raise ValueError(msg)


def is_traced() -> bool:
    """Whether `torch.jit.trace` looks on, which would keep numba's answers as constants."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing
