"""Experts as stacked tensors: one parameter a layer, experts along its first axis.

Axes: T rows, D input features, O output features, E experts, P (row, expert) pairs.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime._checks import check_positive, check_type
from moe_runtime._grouped import grouped_linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "identity": lambda x: x,
    "relu": torch.relu,
    "silu": F.silu,
}


def check_activation(name: str, value: str) -> None:
    """Refuse an activation that the experts and their export do not know."""
    if value not in ACTIVATIONS:
        msg = f"`{name}` must be one of {sorted(ACTIVATIONS)}, got {value!r}."
        raise ValueError(msg)


class StackedLinear(nn.Module):
    """`num_experts` linear maps of the same size, initialised as `torch.nn.Linear` is."""

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Map block e of the sorted rows with expert e: (P, D) to (P, O)."""
        device = x_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return grouped_linear(x_PD.to(dtype), self.weight.to(dtype), self.bias.to(dtype), counts_E)

    def every(self, x: Tensor) -> Tensor:
        """Map every row with every expert: (T, D) or (E, T, D) to (E, T, O)."""
        x_ETD = x.expand(self.weight.shape[0], *x.shape[-2:])
        return torch.baddbmm(self.bias[:, None, :], x_ETD, self.weight.mT)


class Experts(nn.Module):
    """A stack of feed-forward experts of the same size.

    Parameters
    ----------
    num_experts
        Number of experts, E.
    widths
        Features at the input, of each hidden layer, and at the output: ``(D, O)`` is one
        dense layer, ``(D, H, O)`` has one hidden layer.
    activation
        Between layers: ``"relu"``, ``"gelu"`` (exact), ``"silu"`` or ``"identity"``.
    output_activation
        After the last layer, from the same list.
    """

    def __init__(
        self,
        num_experts: int,
        widths: Sequence[int],
        *,
        activation: str = "relu",
        output_activation: str = "identity",
    ) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        check_type("widths", widths, Sequence, "a sequence of integers")
        if len(widths) < 2:
            msg = f"`widths` must name at least the input and the output, got {tuple(widths)}."
            raise ValueError(msg)
        for width in widths:
            check_positive("widths", width)
        check_activation("activation", activation)
        check_activation("output_activation", output_activation)
        self.num_experts = num_experts
        self.activations = (activation,) * (len(widths) - 2) + (output_activation,)
        self.layers = nn.ModuleList(
            StackedLinear(num_experts, first, second) for first, second in pairwise(widths)
        )
        self.in_features, self.out_features = widths[0], widths[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of the input wherever autocast does not choose."""
        return next(self.parameters()).dtype

    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run the pairs of a plan, sorted by expert: (P, D) to (P, O)."""
        for layer, name in zip(self.layers, self.activations, strict=True):
            x_PD = ACTIVATIONS[name](layer(x_PD, counts_E))
        return x_PD

    def every(self, x_TD: Tensor) -> Tensor:
        """Run every expert on every row: (T, D) to (E, T, O)."""
        x = x_TD
        for layer, name in zip(self.layers, self.activations, strict=True):
            assert isinstance(layer, StackedLinear)
            x = ACTIVATIONS[name](layer.every(x))
        return x

    def extra_repr(self) -> str:
        """Say what the layers' shapes do not."""
        return f"activations={self.activations}"
