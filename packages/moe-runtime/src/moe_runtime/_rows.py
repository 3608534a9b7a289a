"""From rows to pairs and back: gather rows, combine outputs.

Each has a backward of its own: autograd's would scatter rows in an order that is not fixed
on a GPU.

Axes: T rows, D input features, O output features, G gates, P (row, expert) pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime._memory import new_empty
from moe_runtime._plan import Plan


def _sum_by_row(y_PO: Tensor, plan: Plan, weights_P: Tensor | None = None) -> Tensor:
    """Add the pairs of each row, in a fixed order; a row without pairs is 0."""
    if plan.num_pairs == 0:
        return y_PO.new_zeros(plan.num_rows, y_PO.shape[1])
    return F.embedding_bag(
        plan.by_row_P,
        y_PO,
        plan.row_start_T,
        mode="sum",
        per_sample_weights=None if weights_P is None else weights_P[plan.by_row_P],
    )


def _rows(x_TD: Tensor, plan: Plan) -> Tensor:
    row_PD = new_empty(x_TD, plan.num_pairs, x_TD.shape[1])
    return torch.index_select(x_TD, 0, plan.row_P, out=row_PD)


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: Plan) -> Tensor:  # noqa: ANN401
        ctx.plan = plan
        return _rows(x_TD, plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _sum_by_row(grads[0].contiguous(), ctx.plan), None


class _Combine(Function):
    @staticmethod
    def forward(ctx: Any, y_PO: Tensor, weights_GP: Tensor, plan: Plan) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(y_PO, weights_GP)
        ctx.plan = plan
        return torch.stack([_sum_by_row(y_PO, plan, weights_P) for weights_P in weights_GP])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:  # noqa: ANN401
        y_PO, weights_GP = ctx.saved_tensors
        grad_y_PO = None
        grad_weights_GP = torch.empty_like(weights_GP)
        for gate, grad_TO in enumerate(grads[0]):
            grad_PO = _rows(grad_TO, ctx.plan)
            torch.linalg.vecdot(grad_PO, y_PO, out=grad_weights_GP[gate])
            grad_PO.mul_(weights_GP[gate, :, None])
            grad_y_PO = grad_PO if grad_y_PO is None else grad_y_PO.add_(grad_PO)
        return grad_y_PO, grad_weights_GP, None


def gather_rows(x_TD: Tensor, plan: Plan) -> Tensor:
    """Copy each pair's row, shape (P, D)."""
    return apply(_GatherRows, x_TD, plan)


def combine(y_PO: Tensor, weights_GP: Tensor, plan: Plan) -> Tensor:
    """Add the weighted expert outputs of each row for each gate, shape (G, T, O)."""
    return apply(_Combine, y_PO, weights_GP, plan)


def apply(function: type[Function], *args: object) -> Tensor:
    """Apply an autograd function, which PyTorch (2.13) does not type."""
    result = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result
