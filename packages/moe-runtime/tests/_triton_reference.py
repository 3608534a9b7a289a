"""What the tests of the Triton kernels share: where they run, inputs, and a float64 loop."""

import os
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from _reference import ACTIVATIONS, draw_gates
from torch import Tensor

from moe_runtime._triton import run_experts

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
GATED = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu", "swiglu": "silu"}
# Of the largest entry: sums of a hundred terms in float32, rounded once a layer to the dtype.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 0.03}


def require_triton() -> None:
    """Skip a test file where its kernels can run nowhere."""
    pytest.importorskip("triton", reason="needs the extra: pip install 'moe-runtime[gpu]'")
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)


def draw_stacks(
    num_experts: int,
    widths: Sequence[int],
    activations: Sequence[str],
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Draw weight and bias of each layer."""
    stacks = []
    for (first, second), name in zip(pairwise(widths), activations, strict=True):
        outputs = 2 * second if name in GATED else second
        weight = torch.randn(num_experts, outputs, first) / first**0.5
        stacks += [weight, torch.randn(num_experts, outputs)]
    return [stack.to(DEVICE, dtype).requires_grad_() for stack in stacks]


def activate(z: Tensor, name: str) -> Tensor:
    """Value of an activation of one expert and row, gated or not."""
    if name not in GATED:
        return ACTIVATIONS[name](z)
    gate, value = z.chunk(2)
    return ACTIVATIONS[GATED[name]](gate) * value


def loop(
    x_TD: Tensor, weights_GTE: Tensor, stacks: Sequence[Tensor | None], activations: Sequence[str]
) -> Tensor:
    """Output (G, T, O), one pair after the other."""
    num_gates, num_rows, num_experts = weights_GTE.shape
    last = stacks[-2]
    assert last is not None
    width = last.shape[1] // (2 if activations[-1] in GATED else 1)
    # Every argument takes part, so that each has a gradient however few pairs there are.
    nothing = sum((each * 0).sum() for each in (x_TD, weights_GTE, *stacks) if each is not None)
    output_GTO = x_TD.new_zeros(num_gates, num_rows, width) + nothing
    for row in range(num_rows):
        for expert in range(num_experts):
            weights_G = weights_GTE[:, row, expert]
            if not weights_G.any():
                continue
            value = x_TD[row]
            for layer, name in enumerate(activations):
                weight, bias = stacks[2 * layer], stacks[2 * layer + 1]
                assert weight is not None
                z = weight[expert] @ value
                value = activate(z if bias is None else z + bias[expert], name)
            where = torch.zeros(num_rows, 1, dtype=x_TD.dtype)
            where[row] = 1
            output_GTO = output_GTO + weights_G[:, None, None] * (where * value)
    return output_GTO


def assert_near(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Compare, in units of the largest entry."""
    assert got.shape == wanted.shape
    wanted = wanted.detach()
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    tolerance = TOLERANCES[dtype] * scale
    torch.testing.assert_close(got.detach().cpu().double(), wanted, rtol=0, atol=tolerance)


def compare(
    activations: Sequence[str],
    widths: Sequence[int],
    *,
    num_rows: int = 7,
    num_experts: int = 3,
    num_gates: int = 1,
    dtype: torch.dtype = torch.float32,
    has_bias: bool = True,
    weights_GTE: Tensor | None = None,
) -> None:
    """Compare the output and every gradient with the loop in float64."""
    if weights_GTE is None:
        weights_GTE = draw_gates(num_gates, num_rows, num_experts)
    num_gates, num_rows, num_experts = weights_GTE.shape
    weights_GTE = weights_GTE.to(DEVICE, torch.float32).requires_grad_()
    x_TD = torch.randn(num_rows, widths[0]).to(DEVICE, dtype).requires_grad_()
    stacks: list[Tensor | None] = [*draw_stacks(num_experts, widths, activations, dtype)]
    if not has_bias:
        stacks[1::2] = [None] * len(activations)
    leaves = [each for each in (x_TD, weights_GTE, *stacks) if each is not None]
    output = run_experts(x_TD, weights_GTE, stacks, activations, max_active=num_experts)
    grad = torch.randn(output.shape).to(DEVICE, dtype)
    ours = torch.autograd.grad(output, leaves, grad)

    wide: list[Tensor | None] = [
        None if each is None else each.detach().cpu().double().requires_grad_()
        for each in (x_TD, weights_GTE, *stacks)
    ]
    assert wide[0] is not None
    assert wide[1] is not None
    wanted = loop(wide[0], wide[1], wide[2:], activations)
    theirs = torch.autograd.grad(
        wanted, [each for each in wide if each is not None], grad.cpu().double()
    )
    assert output.dtype == dtype
    assert_near(output, wanted, dtype)
    for leaf, got, expected in zip(leaves, ours, theirs, strict=True):
        assert got.dtype == leaf.dtype
        # The loop also says what a pair of no gate would do if it had weight.
        seen = expected * (weights_GTE != 0).any(0).cpu() if leaf is weights_GTE else expected
        assert_near(got, seen, dtype)
