"""Which form computes a COMET router, and why.

Axes: T rows, D input features, E experts, K trees.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_runtime._comet_walk import GATHERED
from moe_runtime._numba_use import check_numba, is_traced, takes_numba
from moe_runtime._transforms import is_transformed

COMET_KERNELS = ("auto", "dense", "numba", "torch")
# With fewer experts and many rows, PyTorch's dense form is as fast as its walk.
MIN_EXPERTS_TO_GATHER = 64
# Compiled, the walk is ahead of the compiled dense form from here on.
MIN_EXPERTS_TO_COMPILE = 16


class CometKernel(NamedTuple):
    """What computes the gate, and why."""

    name: str  # "dense", "numba" or "torch"
    walks: bool  # only the nodes on a row's paths are scored
    reason: str


def check_comet_kernel(name: str, value: object) -> None:
    """Refuse the name of a kernel that there is not."""
    if value not in COMET_KERNELS:
        msg = f"`{name}` must be one of {list(COMET_KERNELS)}, got {value!r}."
        raise ValueError(msg)


def choose_comet_kernel(
    kernel: str, x: Tensor, parameters: Sequence[Tensor], *, hard: bool, k: int, num_experts: int
) -> CometKernel:
    """Return what computes a batch; `kernel` is what the user asked for.

    Raises
    ------
    ModuleNotFoundError
        If numba is asked for and not installed.
    ValueError
        If numba is asked for and the tensors are not on the CPU.
    """
    if _is_exporting():
        return CometKernel("dense", walks=False, reason="exported and traced models hold this one")
    needs_gradient = torch.is_grad_enabled() and any(
        each.requires_grad for each in (x, *parameters)
    )
    walks = hard and not needs_gradient
    if kernel == "dense":
        return CometKernel("dense", walks=False, reason="asked for")
    if torch.compiler.is_compiling():
        walks = walks and (kernel == "torch" or num_experts >= MIN_EXPERTS_TO_COMPILE)
        return CometKernel("torch" if walks else "dense", walks, "compiled")
    if is_transformed():
        return CometKernel("dense", walks=False, reason="inside a transform of torch.func")
    if kernel == "numba":
        check_numba(x, "a router with `kernel='numba'`")
    if kernel == "numba" or (kernel == "auto" and takes_numba((x, *parameters))):
        return CometKernel("numba", walks, "no gradient" if walks else "soft, or with a gradient")
    num_gathered = x.shape[:-1].numel() * k * x.shape[-1]
    if not (walks or (kernel == "torch" and hard)):
        walks, reason = False, "soft, or with a gradient"
    elif kernel == "auto" and num_experts < MIN_EXPERTS_TO_GATHER and num_gathered > GATHERED:
        walks, reason = False, "few experts for so many rows"
    else:
        walks, reason = True, "hard, and no numba" if kernel == "auto" else "asked for"
    return CometKernel("torch" if walks else "dense", walks, reason)


def _is_exporting() -> bool:
    return is_traced() or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
