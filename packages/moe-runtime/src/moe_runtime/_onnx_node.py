"""What stands for a mixture while a model is exported to ONNX: one opaque node.

A tracer sees the experts that its example reaches and loses the others; one node loses none.
`moe_runtime.onnx` puts into its place what a runtime knows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts

OPERATOR, MODULE_OPERATOR = "moe_runtime::Mixture", "moe_runtime::ModuleMixture"


def is_exporting() -> bool:
    """Whether `torch.onnx` is tracing."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def onnx_node(
    experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, max_active: Sequence[int]
) -> Tensor:
    """Add the node: output (G, T, O) of rows (T, D) and weights (G, T, E)."""
    attributes: dict[str, Any] = {"out_features": experts.out_features, "max_active": max_active}
    operator, stacks = MODULE_OPERATOR, []
    if isinstance(experts, Experts):
        operator = OPERATOR
        # By name: what was pruned has its parameters in another order.
        pairs = experts.stacks(x_TD)
        stacks = [stack for pair in pairs for stack in pair if stack is not None]
        attributes |= {"activations": list(experts.activations), "bias": int(experts.has_bias)}
    return torch.onnx.ops.symbolic(
        operator,
        (x_TD, weights_GTE, *stacks),
        attrs=attributes,
        dtype=x_TD.dtype,
        shape=(weights_GTE.shape[0], x_TD.shape[0], experts.out_features),
        version=1,
    )
