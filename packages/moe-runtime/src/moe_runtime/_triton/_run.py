"""The entry: checks, the plan, and the choice of tiles.

Axes: T rows, D input features, O output features, E experts, G gates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch

from moe_runtime._requirements import require
from moe_runtime._triton._blocks import Table, choose_table
from moe_runtime._triton._plan import make_device_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run_experts(
    x_TD: Tensor,
    weights_GTE: Tensor,
    stacks: Sequence[Tensor | None],
    activations: Sequence[str],
    *,
    max_active: int | None = None,
    allow_tf32: bool | None = None,
    table: Table | None = None,
) -> Tensor:
    """Run the experts that have a weight and add up their outputs, shape (G, T, O).

    Repeats are equal to the bit, gradients included: nothing is added atomically.

    Parameters
    ----------
    x_TD
        Rows, float32, bfloat16 or float16, on a CUDA device, or on the CPU where
        ``TRITON_INTERPRET=1`` was set before Triton was imported.
    weights_GTE
        Gate weights with exact zeros where an expert is not used; any floating dtype.
    stacks
        Weight (E, O, D) and bias (E, O), or None, of each layer in turn, in the dtype of `x_TD`.
    activations
        One a layer, after it: ``"identity"``, ``"relu"``, ``"gelu"`` (exact), ``"gelu_tanh"``,
        ``"silu"``, or ``"swiglu"``, ``"geglu"``, ``"geglu_tanh"``, ``"reglu"``, which multiply
        the second half of the layer's outputs by the SiLU, GELU or ReLU of the first.
    max_active
        The pairs are at most ``T * max_active``: room is made for so many, and the host does
        not wait for the device. More of them are an error of the device. None counts them,
        for which the host waits once.
    allow_tf32
        Round the factors of float32 products to 10 bits; by default as
        `torch.backends.cuda.matmul.fp32_precision` says: not unless it was set.
    table
        Sizes of tiles; by default those for the device.

    Raises
    ------
    ModuleNotFoundError
        If Triton is not installed.
    ValueError
        If there is no kernel for the device or the dtype.
    """
    require("triton", extra="gpu", purpose="the kernel 'triton'")
    function = importlib.import_module("moe_runtime._triton._function")
    if x_TD.dtype not in DTYPES:
        msg = f"`x` must be one of {[str(each) for each in DTYPES]}, got {x_TD.dtype}."
        raise ValueError(msg)
    interpreted = is_interpreted()
    if x_TD.device.type != "cuda" and not interpreted:
        msg = f"`x` must be on a CUDA device for the kernel 'triton', got {x_TD.device}."
        raise ValueError(msg)
    settings = function.Settings(
        function.Launcher(
            plan=make_device_plan(weights_GTE.detach(), max_active=max_active),
            table=choose_table(x_TD) if table is None else table,
            precision=choose_precision(allow_tf32=allow_tf32),
            interpreted=interpreted,
        ),
        activations=tuple(activations),
        keeps=torch.is_grad_enabled()
        and any(each is not None and each.requires_grad for each in (x_TD, weights_GTE, *stacks)),
    )
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device_of(x_TD):  # type: ignore[no-untyped-call]
        output: Tensor = function.MixtureFunction.apply(x_TD, weights_GTE, settings, *stacks)
    return output


def choose_precision(*, allow_tf32: bool | None) -> str:
    """Choose how float32 is multiplied; by default as PyTorch is told to multiply matrices."""
    if allow_tf32 is None:
        # Not `allow_tf32`, which raises (PyTorch 2.13) where this one was set.
        allow_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allow_tf32 else "ieee"


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    interpreted: bool = importlib.import_module("triton").knobs.runtime.interpret
    return interpreted
