"""Experts on few rows each by numba's loops, on the CPU and in one thread.

Threads of ours would wait for PyTorch's, which go on spinning for milliseconds after each product
of theirs, and keep the cores.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from moe_runtime._activations import ACTIVATIONS
from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts
from moe_runtime._layers import Step
from moe_runtime._memory import new_empty
from moe_runtime._numba_use import check_numba, is_traced, takes_numba
from moe_runtime._plan import Plan
from moe_runtime._rows import apply

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
        If the rows are not on the CPU, or numba does not know the experts.
    """
    if not (suits_numba(experts) and x_TD.is_cpu):
        check_numba(x_TD, "a mixture with `kernel='numba'`")
        msg = "`kernel`='numba' runs `Experts` in float32 or float64 only."
        raise ValueError(msg)
    assert isinstance(experts, Experts)
    stacks = [each for stack in experts.stacks(x_TD) for each in stack]
    inputs = x_TD.to(experts.dtype), weights_GTE, plan.mask_TE, experts.steps()
    if torch.is_grad_enabled():
        return apply(_RunExperts, *inputs, *stacks)
    return _forward(*inputs, stacks).total_GTO


class _Forward(NamedTuple):
    """The answer, and what its backward needs."""

    total_GTO: Tensor
    y_PO: Tensor  # by the experts
    kept: list[Tensor | None]  # of each layer, what its linear map gave, and the noise of dropout
    row_P: NDArray[np.int64]
    first_E: NDArray[np.int64]


def _forward(
    x_TD: Tensor,
    weights_GTE: Tensor,
    mask_TE: Tensor,
    steps: Sequence[Step],
    stacks: Sequence[Tensor | None],
) -> _Forward:
    """Run one layer after the other, for all pairs sorted by expert."""
    from moe_runtime import _numba_experts  # noqa: PLC0415 - an extra, at use

    row_P, first_E = _numba_experts.list_pairs(_array(mask_TE))
    place_P = np.arange(len(row_P))
    y, source_P, kept = x_TD, row_P, list[Tensor | None]()
    for layer, step in enumerate(steps):
        weight, bias = stacks[2 * layer : 2 * layer + 2]
        assert weight is not None
        weight_EOD = _array(weight)
        bias_EO = weight_EOD[:0, :, 0] if bias is None else _array(bias)
        before_PO = np.empty((len(row_P), weight_EOD.shape[1]), weight_EOD.dtype)
        _numba_experts.linear(_array(y), source_P, first_E, weight_EOD, bias_EO, before_PO)
        before = torch.from_numpy(before_PO)
        noise = step.noise(before)
        kept += [before, noise]
        y, source_P = step.forward(before, noise), place_P
    y_PO, weight_GTE = _array(y), _array(weights_GTE)
    dtype = np.promote_types(y_PO.dtype, weight_GTE.dtype)
    total_GTO = np.empty((*weight_GTE.shape[:2], y_PO.shape[1]), dtype)
    _numba_experts.combine(y_PO, row_P, first_E, weight_GTE, total_GTO)
    return _Forward(torch.from_numpy(total_GTO).to(y.dtype), y, kept, row_P, first_E)


class _RunExperts(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x_TD: Tensor,
        weights_GTE: Tensor,
        mask_TE: Tensor,
        steps: Sequence[Step],
        *stacks: Tensor | None,
    ) -> Tensor:
        found = _forward(x_TD, weights_GTE, mask_TE, steps, stacks)
        if steps[-1].activation is ACTIVATIONS["identity"]:
            found.kept[-2] = None  # Its backward needs nothing.
        ctx.save_for_backward(x_TD, weights_GTE, found.y_PO, *stacks, *found.kept)
        ctx.steps, ctx.row_P, ctx.first_E = steps, found.row_P, found.first_E
        return found.total_GTO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        from moe_runtime import _numba_gradients  # noqa: PLC0415 - an extra, at use

        steps, row_P, first_E = ctx.steps, ctx.row_P, ctx.first_E
        x_TD, weights_GTE, y_PO, *rest = ctx.saved_tensors
        stacks, kept = rest[: 2 * len(steps)], rest[2 * len(steps) :]
        need_x, _, _, _, *needed = ctx.needs_input_grad
        grad, grad_weights_GTE = torch.empty_like(y_PO), torch.zeros_like(weights_GTE)
        _numba_gradients.gradients_of_combine(
            _array(grads[0]),
            _array(y_PO),
            row_P,
            first_E,
            _array(weights_GTE),
            grad.numpy(),
            grad_weights_GTE.numpy(),
        )
        grad_stacks: list[Tensor | None] = []
        place_P = np.arange(len(row_P))
        for layer in reversed(range(len(steps))):
            here = slice(2 * layer, 2 * layer + 2)
            grad_PO = _array(steps[layer].backward(grad, *kept[here]))
            y, source_P = x_TD, row_P
            if layer:
                y = steps[layer - 1].forward(*kept[2 * layer - 2 : 2 * layer])
                source_P = place_P
            gradients = _of_parameters(grad_PO, y, source_P, first_E, stacks[here], needed[here])
            grad_stacks = [*gradients, *grad_stacks]
            if layer or need_x:
                weight_EOD = _array(stacks[2 * layer])
                grad = new_empty(y_PO, len(row_P), weight_EOD.shape[2])
                _numba_gradients.gradient_of_rows(grad_PO, first_E, weight_EOD, grad.numpy())
        grad_x_TD = torch.zeros_like(x_TD) if need_x else None
        if grad_x_TD is not None:
            _numba_gradients.add_up(_array(grad), row_P, grad_x_TD.numpy())
        return grad_x_TD, grad_weights_GTE, None, None, *grad_stacks


def _of_parameters(
    grad_PO: NDArray[Any],
    y: Tensor,
    source_P: NDArray[np.int64],
    first_E: NDArray[np.int64],
    stack: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a weight and a bias, where they are needed."""
    from moe_runtime import _numba_gradients  # noqa: PLC0415 - an extra, at use

    grad_weight, grad_bias = (
        new_empty(each, *each.shape) if need else None
        for each, need in zip(stack, needed, strict=True)
    )
    if grad_weight is not None:
        _numba_gradients.gradient_of_weights(
            grad_PO, _array(y), source_P, first_E, grad_weight.numpy()
        )
    if grad_bias is not None:
        _numba_gradients.gradient_of_biases(grad_PO, first_E, grad_bias.numpy())
    return grad_weight, grad_bias


def _array(tensor: Tensor) -> NDArray[Any]:
    """Look at a tensor's memory; one that is not contiguous is copied."""
    array: NDArray[Any] = tensor.detach().contiguous().numpy()
    return array
