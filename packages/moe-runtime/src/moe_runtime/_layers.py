"""Run the layers of stacked experts over rows that are sorted by expert.

One expert after the other, so that what is between two layers stays in the cache. The backward
is written out: autograd's would add into the whole stack of experts once per expert, and would
keep each activation besides what went into it.

Axes: D input features, O output features, E experts, P (row, expert) pairs, R rows of one expert.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime._activations import ACTIVATIONS, Activation
from moe_runtime._memory import new_empty
from moe_runtime._products import linear, weight_gradient
from moe_runtime._rows import apply


class Step(NamedTuple):
    """What follows a linear map: an activation, and dropout with some probability."""

    activation: Activation
    dropout: float

    def __call__(self, before: Tensor) -> Tensor:
        """Activate, and drop: features are on the last axis."""
        after = self.activation(before)
        return F.dropout(after, self.dropout) if self.dropout else after

    def noise(self, before_RO: Tensor) -> Tensor | None:
        """Draw the factors of dropout."""
        if not self.dropout:
            return None
        features = before_RO.shape[1] // (2 if self.activation.gated else 1)
        kept = 1 - self.dropout
        return before_RO.new_empty(before_RO.shape[0], features).bernoulli_(kept).div_(kept)

    def forward(self, before_RO: Tensor, noise_RO: Tensor | None) -> Tensor:
        """Activate, and drop."""
        after_RO = self.activation(before_RO)
        return after_RO if noise_RO is None else after_RO * noise_RO

    def backward(self, grad_RO: Tensor, before_RO: Tensor, noise_RO: Tensor | None) -> Tensor:
        """Gradient of what the linear map gave, from that of what the next one is given."""
        grad_RO = grad_RO if noise_RO is None else grad_RO * noise_RO
        return self.activation.backward(grad_RO, before_RO)


def run_layers(
    x_PD: Tensor,
    counts_E: list[int],
    steps: Sequence[Step],
    stacks: Sequence[tuple[Tensor, Tensor | None]],
) -> Tensor:
    """Give expert e the e-th block of rows: (P, D) to (P, O).

    Each layer is a stack of weights (E, O, D) and of biases (E, O) or None, and a step.
    """
    return apply(_RunLayers, x_PD, counts_E, steps, *(each for stack in stacks for each in stack))


class _RunLayers(Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x_PD: Tensor,
        counts_E: list[int],
        steps: Sequence[Step],
        *stacks: Tensor | None,
    ) -> Tensor:
        weight_EOF = stacks[-2]
        assert weight_EOF is not None
        last_PO = new_empty(x_PD, x_PD.shape[0], weight_EOF.shape[1])
        saved: list[Tensor | None] = []
        for expert, (x_RD, last_RO) in _blocks(counts_E, x_PD, last_PO):
            saved += _forward(x_RD, steps, _of_expert(stacks, expert), last_RO)
        # The last step is one for the rows of all experts.
        noise_PO = steps[-1].noise(last_PO)
        is_kept = (
            steps[-1].activation is not ACTIVATIONS["identity"]
        )  # whose backward needs nothing
        ctx.save_for_backward(x_PD, last_PO if is_kept else None, noise_PO, *stacks, *saved)
        ctx.counts_E, ctx.steps = counts_E, steps
        return steps[-1].forward(last_PO, noise_PO)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        steps = ctx.steps
        x_PD, last_PO, noise_PO, *rest = ctx.saved_tensors
        stacks, saved = rest[: 2 * len(steps)], rest[2 * len(steps) :]
        need_x, _, _, *needed = ctx.needs_input_grad
        grad_stacks = _empty_gradients(stacks, needed, ctx.counts_E)
        grad_x_PD = new_empty(x_PD, *x_PD.shape) if need_x else None
        grad_PO = steps[-1].backward(grads[0], last_PO, noise_PO)
        blocks = _blocks(ctx.counts_E, x_PD, grad_PO, x_PD if grad_x_PD is None else grad_x_PD)
        num_kept = 2 * (len(steps) - 1)
        for expert, (x_RD, grad_RO, grad_x_RD) in blocks:
            kept, saved = saved[:num_kept], saved[num_kept:]
            of_expert = _of_expert(stacks, expert), _of_expert(grad_stacks, expert)
            _backward(x_RD, grad_RO, steps, kept, *of_expert, grad_x_RD if need_x else None)
        return grad_x_PD, None, None, *grad_stacks


def _forward(
    x_RD: Tensor, steps: Sequence[Step], stacks: Sequence[Any], last_RO: Tensor
) -> list[Tensor | None]:
    """Run one expert up to its last linear map, whose result is written to `last_RO`.

    Returns, for each step but the last, what went into it and the noise of dropout.
    """
    y: Tensor = x_RD
    kept: list[Tensor | None] = []
    for layer, step in enumerate(steps[:-1]):
        before = linear(y, *stacks[2 * layer : 2 * layer + 2])
        noise = step.noise(before)
        kept += [before, noise]
        y = step.forward(before, noise)
    linear(y, *stacks[-2:], out_TO=last_RO)
    return kept


def _backward(
    x_RD: Tensor,
    grad: Tensor,
    steps: Sequence[Step],
    kept: Sequence[Any],
    stacks: Sequence[Any],
    grad_stacks: Sequence[Tensor | None],
    grad_x_RD: Tensor | None,
) -> None:
    """Write the gradients of one expert: of its parameters, and of its rows if they need one.

    `grad` is that of what the last linear map gave.
    """
    before, noise = kept[::2], kept[1::2]
    inputs = [x_RD]
    for layer, step in enumerate(steps[:-1]):
        inputs.append(step.forward(before[layer], noise[layer]))
    for layer in reversed(range(len(steps))):
        grad_weight, grad_bias = grad_stacks[2 * layer : 2 * layer + 2]
        if grad_weight is not None:
            weight_gradient(grad, inputs[layer], grad_weight)
        if grad_bias is not None:
            torch.sum(grad, 0, out=grad_bias)
        if layer:
            grad = linear(grad, stacks[2 * layer].T)
            grad = steps[layer - 1].backward(grad, before[layer - 1], noise[layer - 1])
        elif grad_x_RD is not None:
            linear(grad, stacks[0].T, out_TO=grad_x_RD)


def _blocks(counts_E: list[int], *tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Go through the experts that have rows, with their blocks of each tensor."""
    blocks = zip(*(torch.split(tensor, counts_E) for tensor in tensors), strict=True)
    return ((expert, block) for expert, block in enumerate(blocks) if counts_E[expert])


def _of_expert(stacks: Sequence[Tensor | None], expert: int) -> list[Tensor | None]:
    return [None if stack is None else stack[expert] for stack in stacks]


def _empty_gradients(
    stacks: Sequence[Tensor | None], needed: Sequence[bool], counts_E: list[int]
) -> list[Tensor | None]:
    """Make room for the gradients that are needed; 0 for experts without rows.

    Not None: every parameter gets a gradient in every step, so that distributed training
    never waits for one.
    """
    unused = [expert for expert, count in enumerate(counts_E) if not count]
    gradients = [
        new_empty(stack, *stack.shape) if need and stack is not None else None
        for stack, need in zip(stacks, needed, strict=True)
    ]
    for gradient in gradients:
        if gradient is not None:
            for expert in unused:
                gradient[expert].zero_()
    return gradients
