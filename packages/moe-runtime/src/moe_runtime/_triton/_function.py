"""A mixture's experts on Triton's kernels, and their gradients.

Axes: T rows, D input features, O output features, E experts, G gates, P room for pairs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from moe_runtime._activations import GATED
from moe_runtime._triton._launch import Launcher, Layer
from moe_runtime._triton._plan import gather_gates, spread_gates


class Settings(NamedTuple):
    """What is no tensor to differentiate."""

    launcher: Launcher
    activations: tuple[str, ...]
    keeps: bool  # what the backward needs


def make_layers(stacks: Sequence[Tensor | None], activations: Sequence[str]) -> list[Layer]:
    """Put the weights, biases and activations of each layer together."""
    layers = []
    for number, name in enumerate(activations):
        weight, bias = stacks[2 * number], stacks[2 * number + 1]
        assert weight is not None
        bias = None if bias is None else bias.contiguous()
        layers.append(Layer(weight.contiguous(), bias, GATED.get(name, name), name in GATED))
    return layers


def _weighs_products(layers: Sequence[Layer], num_gates: int) -> bool:
    """Whether the backward weighs products instead of outputs, which then need not be kept.

    With one gate and nothing after the last product, the gradient of a pair's weight is
    <gradient of the output times the last weight, that layer's input> (SonicMoE,
    arXiv:2512.14080, section 3.2), which a product of the backward gives anyway.
    """
    last = layers[-1]
    plain = last.activation == "identity" and not last.is_gated
    return num_gates == 1 and plain and len(layers) > 1


class MixtureFunction(Function):
    """Weighted sum of the experts' outputs, (G, T, O)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x_TD: Tensor,
        weights_GTE: Tensor,
        settings: Settings,
        *stacks: Tensor | None,
    ) -> Tensor:
        launcher = settings.launcher
        layers = make_layers(stacks, settings.activations)
        gates_GP = gather_gates(weights_GTE, launcher.plan)
        x_TD = y = x_TD.contiguous()
        kept = []
        for number, layer in enumerate(layers):
            is_plain = layer.activation == "identity" and not layer.is_gated
            keeps_z = settings.keeps and not is_plain
            z, y = launcher.output(y, layer, gathers=number == 0, keeps=keeps_z)
            kept.append(z if keeps_z else y)
        if settings.keeps:
            if _weighs_products(layers, len(gates_GP)):
                kept.pop()
            ctx.settings = settings
            ctx.weights_dtype = weights_GTE.dtype
            ctx.save_for_backward(x_TD, gates_GP, *stacks, *kept)
        return launcher.sum_by_row(y, gates_GP)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        settings: Settings = ctx.settings
        launcher, num_stacks = settings.launcher, 2 * len(settings.activations)
        x_TD, gates_GP, *rest = ctx.saved_tensors
        layers = make_layers(rest[:num_stacks], settings.activations)
        grad_GTO, kept = grads[0].contiguous(), rest[num_stacks:]
        gate: Tensor | None
        if _weighs_products(layers, len(gates_GP)):
            grad, gate = grad_GTO[0], gates_GP
            grad_GP = _bias_part(launcher, grad_GTO, layers[-1])
        else:
            last, z = layers[-1], kept.pop()
            grad, gate = launcher.pair_gradient(grad_GTO, gates_GP, z, last), None
            grad_GP = launcher.gate_gradient(
                grad_GTO, z, activation=last.activation, is_gated=last.is_gated, by_expert=False
            )
        needs_x, needs_weights, _, *needs_stacks = ctx.needs_input_grad
        grad_stacks: list[Tensor | None] = [None] * num_stacks
        for number in reversed(range(len(layers))):
            layer, is_first = layers[number], number == 0
            y, grad_below = x_TD, grad
            if not is_first:
                grad_below, y, parts = launcher.input_gradient(
                    grad, layer, layers[number - 1], kept.pop(), gate
                )
                if gate is not None:
                    grad_GP = grad_GP + parts.sum(1)[None]
            if needs_stacks[2 * number]:
                grad_stacks[2 * number] = launcher.weight_gradient(
                    grad, y, layer.weight, gathers_grad=gate is not None, gathers_x=is_first
                )
            if layer.bias is not None and needs_stacks[2 * number + 1]:
                grad_stacks[2 * number + 1] = launcher.bias_gradient(grad, layer.bias, gate)
            if not is_first:
                grad, gate = grad_below, None
        grad_x_TD = None
        if needs_x:
            grad_x_TD = launcher.sum_by_row(launcher.first_input_gradient(grad, layers[0]), None)[0]
        grad_weights_GTE = None
        if needs_weights:
            grad_weights_GTE = spread_gates(grad_GP, launcher.plan).to(ctx.weights_dtype)
        return grad_x_TD, grad_weights_GTE, None, *grad_stacks


def _bias_part(launcher: Launcher, grad_GTO: Tensor, last: Layer) -> Tensor:
    """Gradient of the pairs' weights that comes from the last layer's bias."""
    if last.bias is None:
        return torch.zeros((), device=grad_GTO.device)
    return launcher.gate_gradient(
        grad_GTO, last.bias, activation="identity", is_gated=False, by_expert=True
    )
