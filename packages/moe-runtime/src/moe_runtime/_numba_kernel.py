"""Experts on few rows each by numba's loops: on the CPU, without gradients, in one thread.

Threads of ours would wait for PyTorch's, which go on spinning for milliseconds after each product
of theirs, and keep the cores.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts
from moe_runtime._numba_use import check_numba, is_traced, takes_numba
from moe_runtime._plan import Plan

DTYPES = (torch.float32, torch.float64)


def suits_numba(experts: ExpertSet) -> bool:
    """Whether numba is here and knows such experts, in the precision that they compute in."""
    if not isinstance(experts, Experts):
        return False
    weight = experts.layers[0].weight
    assert isinstance(weight, Tensor)
    return takes_numba([weight]) and experts.computed_in(weight) in DTYPES and not is_traced()


def run_numba(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Run loops that read an expert's weights once, and call no library for it.

    Raises
    ------
    ModuleNotFoundError
        If numba is not installed.
    ValueError
        If the rows are not on the CPU, numba does not know the experts, or a gradient is wanted.
    """
    if not (suits_numba(experts) and x_TD.is_cpu):
        check_numba(x_TD, "a mixture with `kernel='numba'`")
        msg = "`kernel`='numba' runs `Experts` in float32 or float64 only."
        raise ValueError(msg)
    leaves = (x_TD, weights_GTE, *experts.parameters()) if torch.is_grad_enabled() else ()
    if any(each.requires_grad for each in leaves):
        msg = "`kernel`='numba' passes no gradient: run it under `torch.inference_mode()`."
        raise ValueError(msg)
    assert isinstance(experts, Experts)
    from moe_runtime import _numba_experts  # noqa: PLC0415 - an extra, at use

    row_P, first_E = _numba_experts.list_pairs(_array(plan.mask_TE))
    y, source_P = x_TD.to(experts.dtype), row_P
    for (weight, bias), step in zip(experts.stacks(x_TD), experts.steps(), strict=True):
        weight_EOD = _array(weight)
        bias_EO = weight_EOD[:0, :, 0] if bias is None else _array(bias)
        before_PO = np.empty((len(row_P), weight_EOD.shape[1]), weight_EOD.dtype)
        _numba_experts.linear(_array(y), source_P, first_E, weight_EOD, bias_EO, before_PO)
        y, source_P = step(torch.from_numpy(before_PO)), np.arange(len(row_P))
    y_PO, weight_GTE = _array(y), _array(weights_GTE)
    dtype = np.promote_types(y_PO.dtype, weight_GTE.dtype)
    total_GTO = np.empty((*weight_GTE.shape[:2], y_PO.shape[1]), dtype)
    _numba_experts.combine(y_PO, row_P, first_E, weight_GTE, total_GTO)
    return torch.from_numpy(total_GTO).to(y.dtype)


def _array(tensor: Tensor) -> NDArray[Any]:
    """Look at a tensor's memory; one that is not contiguous is copied."""
    array: NDArray[Any] = tensor.detach().contiguous().numpy()
    return array
