"""The three differentiable steps of sparse execution: gather rows, grouped linear, combine.

Each has a backward of its own: autograd's would add into the whole stack of experts once
per expert, and would scatter rows in an order that is not fixed on a GPU.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

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


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, plan: Plan) -> Tensor:  # noqa: ANN401
        ctx.plan = plan
        return x_TD.index_select(0, plan.row_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _sum_by_row(grads[0].contiguous(), ctx.plan), None


class _GroupedLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x_PD: Tensor,
        weight_EOD: Tensor,
        bias_EO: Tensor,
        counts_E: list[int],
    ) -> Tensor:
        ctx.save_for_backward(x_PD, weight_EOD)
        ctx.counts_E = counts_E
        y_PO = x_PD.new_empty(x_PD.shape[0], weight_EOD.shape[1])
        start = 0
        for expert, count in enumerate(counts_E):
            rows = slice(start, start + count)
            if count:
                weight_DO = weight_EOD[expert].T
                torch.addmm(bias_EO[expert], x_PD[rows], weight_DO, out=y_PO[rows])
            start += count
        return y_PO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x_PD, weight_EOD = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_y_PO = grads[0]
        grad_x_PD = torch.empty_like(x_PD) if need_x else None
        # Zeros, not None, for an expert without rows: every parameter gets a gradient in
        # every step, so that distributed training never waits for one.
        grad_weight_EOD = torch.zeros_like(weight_EOD) if need_weight else None
        grad_bias_EO = weight_EOD.new_zeros(weight_EOD.shape[:2]) if need_bias else None
        start = 0
        for expert, count in enumerate(ctx.counts_E):
            rows = slice(start, start + count)
            start += count
            if not count:
                continue
            grad = grad_y_PO[rows]
            if grad_x_PD is not None:
                torch.mm(grad, weight_EOD[expert], out=grad_x_PD[rows])
            if grad_weight_EOD is not None:
                torch.mm(grad.T, x_PD[rows], out=grad_weight_EOD[expert])
            if grad_bias_EO is not None:
                torch.sum(grad, 0, out=grad_bias_EO[expert])
        return grad_x_PD, grad_weight_EOD, grad_bias_EO, None


class _Combine(Function):
    @staticmethod
    def forward(ctx: Any, y_PO: Tensor, weights_GP: Tensor, plan: Plan) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(y_PO, weights_GP)
        ctx.plan = plan
        return torch.stack([_sum_by_row(y_PO, plan, weights_P) for weights_P in weights_GP])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        y_PO, weights_GP = ctx.saved_tensors
        grad_y_PO = torch.zeros_like(y_PO)
        grad_weights_GP = torch.empty_like(weights_GP)
        for gate, grad_TO in enumerate(grads[0]):
            grad_PO = grad_TO.index_select(0, ctx.plan.row_P)
            grad_y_PO.addcmul_(grad_PO, weights_GP[gate, :, None])
            torch.linalg.vecdot(grad_PO, y_PO, out=grad_weights_GP[gate])
        return grad_y_PO, grad_weights_GP, None


def gather_rows(x_TD: Tensor, plan: Plan) -> Tensor:
    """Copy each pair's row, shape (P, D)."""
    return _apply(_GatherRows, x_TD, plan)


def grouped_linear(
    x_PD: Tensor, weight_EOD: Tensor, bias_EO: Tensor, counts_E: list[int]
) -> Tensor:
    """Apply expert e's linear map to the e-th block of rows, shape (P, O)."""
    return _apply(_GroupedLinear, x_PD, weight_EOD, bias_EO, counts_E)


def combine(y_PO: Tensor, weights_GP: Tensor, plan: Plan) -> Tensor:
    """Add the weighted expert outputs of each row for each gate, shape (G, T, O)."""
    return _apply(_Combine, y_PO, weights_GP, plan)


def _apply(function: type[Function], *args: object) -> Tensor:
    result = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result
