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
        outputs, saved = [], []
        for expert, (x_RD,) in _blocks(counts_E, x_PD):
            y_RO, kept = _forward(x_RD, steps, _of_expert(stacks, expert))
            outputs.append(y_RO)
            saved += kept
        ctx.save_for_backward(x_PD, *stacks, *saved)
        ctx.counts_E, ctx.steps = counts_E, steps
        return _joined(outputs) if outputs else _forward(x_PD, steps, _of_expert(stacks, 0))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        steps = ctx.steps
        x_PD, *rest = ctx.saved_tensors
        stacks, saved = rest[: 2 * len(steps)], rest[2 * len(steps) :]
        need_x, _, _, *needed = ctx.needs_input_grad
        grad_stacks = _empty_gradients(stacks, needed, ctx.counts_E)
        grads_x = []
        for expert, (x_RD, grad_RO) in _blocks(ctx.counts_E, x_PD, grads[0]):
            kept, saved = saved[: 2 * len(steps)], saved[2 * len(steps) :]
            of_expert = _of_expert(stacks, expert), _of_expert(grad_stacks, expert)
            grads_x.append(_backward(x_RD, grad_RO, steps, kept, *of_expert, need_x=need_x))
        if not need_x:
            return None, None, None, *grad_stacks
        grad_x_PD = _joined(grads_x) if grads_x else torch.empty_like(x_PD)
        return grad_x_PD, None, None, *grad_stacks


def _forward(
    x_RD: Tensor, steps: Sequence[Step], stacks: Sequence[Any]
) -> tuple[Tensor, list[Tensor | None]]:
    """Run one expert; also give, for each step, what went into it and the noise of dropout."""
    y, kept = x_RD, []
    for layer, step in enumerate(steps):
        before = linear(y, *stacks[2 * layer : 2 * layer + 2])
        noise = step.noise(before)
        kept += [before, noise]
        y = step.forward(before, noise)
    if steps[-1].activation is ACTIVATIONS["identity"]:
        kept[-2] = None  # its backward looks at nothing
    return y, kept


def _backward(
    x_RD: Tensor,
    grad: Tensor,
    steps: Sequence[Step],
    kept: Sequence[Any],
    stacks: Sequence[Any],
    grad_stacks: Sequence[Tensor | None],
    *,
    need_x: bool,
) -> Tensor:
    """Write the gradients of one expert's parameters; give that of its rows if it is needed."""
    before, noise = kept[::2], kept[1::2]
    inputs = [x_RD]
    for layer, step in enumerate(steps[:-1]):
        inputs.append(step.forward(before[layer], noise[layer]))
    for layer in reversed(range(len(steps))):
        grad = steps[layer].backward(grad, before[layer], noise[layer])
        grad_weight, grad_bias = grad_stacks[2 * layer : 2 * layer + 2]
        if grad_weight is not None:
            weight_gradient(grad, inputs[layer], grad_weight)
        if grad_bias is not None:
            torch.sum(grad, 0, out=grad_bias)
        if layer or need_x:
            grad = linear(grad, stacks[2 * layer].T)
    return grad


def _blocks(counts_E: list[int], *tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Go through the experts that have rows, with their blocks of each tensor."""
    blocks = zip(*(torch.split(tensor, counts_E) for tensor in tensors), strict=True)
    return ((expert, block) for expert, block in enumerate(blocks) if counts_E[expert])


def _joined(blocks: list[Tensor]) -> Tensor:
    num_rows = sum(block.shape[0] for block in blocks)
    joined = new_empty(blocks[0], num_rows, blocks[0].shape[1])
    return torch.cat(blocks, out=joined)


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
