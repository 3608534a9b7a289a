"""Experts as stacked tensors: one parameter a layer, experts along its first axis.

Axes: T rows, D input features, O output features, E experts, P (row, expert) pairs.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from moe_runtime._activations import ACTIVATIONS, check_activation
from moe_runtime._checks import check_number, check_positive, check_type
from moe_runtime._expert_set import ExpertSet
from moe_runtime._layers import Step, run_layers
from moe_runtime._products import linear


class StackedLinear(nn.Module):
    """`num_experts` linear maps of the same size, initialised as `torch.nn.Linear` is."""

    bias: nn.Parameter | None

    def __init__(
        self, num_experts: int, in_features: int, out_features: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_experts, out_features)) if bias else None
        bound = 1 / math.sqrt(in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Map every row with one expert: (T, D) to (T, O)."""
        bias = None if self.bias is None else self.bias[expert]
        weight = self.weight[expert]
        if weight.dtype is not x_TD.dtype:  # to ask is faster than to cast to what it is already
            weight, bias = weight.to(x_TD.dtype), None if bias is None else bias.to(x_TD.dtype)
        return linear(x_TD, weight, bias)

    def every(self, x: Tensor) -> Tensor:
        """Map every row with every expert: (T, D) or (E, T, D) to (E, T, O)."""
        x_ETD = x.expand(self.weight.shape[0], *x.shape[-2:])
        weight_EDO = self.weight.to(x.dtype).mT
        if self.bias is None:
            return torch.bmm(x_ETD, weight_EDO)
        return torch.baddbmm(self.bias.to(x.dtype)[:, None, :], x_ETD, weight_EDO)


class Experts(ExpertSet):
    """A stack of feed-forward experts of the same size.

    Parameters
    ----------
    num_experts
        Number of experts, E.
    widths
        Features at the input, of each hidden layer, and at the output: ``(D, O)`` is one
        dense layer, ``(D, H, O)`` has one hidden layer.
    activation
        Between layers: ``"relu"``, ``"gelu"`` (exact), ``"gelu_tanh"`` (its approximation,
        as in GPT-2), ``"silu"``, ``"identity"``, or one that is gated: ``"swiglu"``,
        ``"geglu"``, ``"geglu_tanh"`` (as in T5 and Gemma), ``"reglu"``. A layer before a gated one
        has 2 H features: the first H are the gate, which is activated, the others what it
        multiplies.
    output_activation
        After the last layer, from the same list.
    bias
        Whether linear maps have one.
    dropout
        Probability, in training mode, of zeroing a feature after a hidden layer.

    Examples
    --------
    The experts of Mixtral:

    >>> import moe_runtime
    >>> experts = moe_runtime.Experts(8, (16, 56, 16), activation="swiglu", bias=False)
    >>> [tuple(parameter.shape) for parameter in experts.parameters()]
    [(8, 112, 16), (8, 16, 56)]
    """

    def __init__(
        self,
        num_experts: int,
        widths: Sequence[int],
        *,
        activation: str = "relu",
        output_activation: str = "identity",
        bias: bool = True,
        dropout: float = 0.0,
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
        check_type("bias", bias, bool, "a bool")
        check_number("dropout", dropout)
        if not 0 <= dropout < 1:
            msg = f"`dropout` must be in [0, 1), got {dropout!r}."
            raise ValueError(msg)
        self.num_experts = num_experts
        self.in_features, self.out_features = widths[0], widths[-1]
        self.activations = (activation,) * (len(widths) - 2) + (output_activation,)
        self.has_bias = bias
        self.dropout = dropout
        self.layer_sizes = [
            (first, second * (2 if ACTIVATIONS[name].gated else 1))
            for (first, second), name in zip(pairwise(widths), self.activations, strict=True)
        ]
        self.layers = nn.ModuleList(
            StackedLinear(num_experts, *sizes, bias=bias) for sizes in self.layer_sizes
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of the input wherever autocast does not choose."""
        return next(self._stacks()).weight.dtype

    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run the pairs of a plan, sorted by expert: (P, D) to (P, O)."""
        if not torch.is_grad_enabled():
            return self._forward_by_expert(x_PD, counts_E)
        return run_layers(
            x_PD.to(self.computed_in(x_PD)), counts_E, self.steps(), self.stacks(x_PD)
        )

    def computed_in(self, x: Tensor) -> torch.dtype:
        """Return what products are computed in: what autocast says, or the parameters' dtype."""
        device = x.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype

    def stacks(self, x: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of each layer, in the dtype that they are computed in."""
        dtype = self.computed_in(x)
        stacks = ((stack.weight, stack.bias) for stack in self._stacks())
        return [
            (weight.to(dtype), None if bias is None else bias.to(dtype)) for weight, bias in stacks
        ]

    def _forward_by_expert(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run one expert after the other: what is between two layers then stays in the cache."""
        blocks = enumerate(torch.split(x_PD, counts_E))
        outputs = self.several((expert, block) for expert, block in blocks if block.shape[0])
        return torch.cat(outputs) if outputs else self.one(0, x_PD)

    def one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Run one expert on every row: (T, D) to (T, O)."""
        return self.several([(expert, x_TD)])[0]

    def several(self, blocks: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
        """Run experts, each on rows of its own: (R, D) to (R, O) a block."""
        layers = list(zip(self._stacks(), self.steps(), strict=True))
        # Here: autocast knows neither the fastest library's products nor every device.
        dtype = self.computed_in(layers[0][0].weight)
        outputs = []
        for expert, x in blocks:
            y = x if x.dtype is dtype else x.to(dtype)
            for stack, step in layers:
                y = step(stack.one(expert, y))
            outputs.append(y)
        return outputs

    def every(self, x_TD: Tensor) -> Tensor:
        """Run every expert on every row: (T, D) to (E, T, O)."""
        x = x_TD.to(self.computed_in(x_TD))
        for stack, step in zip(self._stacks(), self.steps(), strict=True):
            x = step(stack.every(x))
        return x

    def _stacks(self) -> Iterator[StackedLinear]:
        for layer in self.layers:
            assert isinstance(layer, StackedLinear)
            yield layer

    def steps(self) -> list[Step]:
        """Return what follows each layer, in this mode."""
        hidden = self.dropout if self.training else 0.0
        dropouts = [hidden] * (len(self.activations) - 1) + [0.0]
        return [
            Step(ACTIVATIONS[name], dropout)
            for name, dropout in zip(self.activations, dropouts, strict=True)
        ]

    def extra_repr(self) -> str:
        """Say what the layers' shapes do not."""
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"activations={self.activations}{dropout}"
