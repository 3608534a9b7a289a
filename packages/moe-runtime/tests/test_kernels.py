"""All kernels give the oracle's output, and its gradient for everything."""

import pytest
import torch
from _reference import ACTIVATIONS, CPU_KERNELS, GATED, draw_gates, reference_mixture, stacks_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_runtime import Experts
from moe_runtime._mixture import run_experts

KERNEL = pytest.mark.parametrize("kernel", CPU_KERNELS)
# Of the largest entry: a hundred terms a sum and three layers, in units of rounding.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 0.03}
# Gradients add up more of them.
GRADIENT_TOLERANCES = {**TOLERANCES, torch.float32: 2e-5}
ONE, TWO, THREE = (6, 4), (6, 9, 4), (6, 9, 5, 4)


def gradients(output: Tensor, grad: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, of, grad.to(output.dtype), materialize_grads=False)


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    wanted = wanted.detach()
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * scale)


def compare(
    experts: Experts,
    kernel: str,
    *,
    num_rows: int,
    num_gates: int = 1,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Compare output and all gradients of a kernel with the oracle."""
    experts.to(dtype)
    x_TD = torch.randn(num_rows, experts.in_features).to(dtype).requires_grad_()
    # Gates are float32 at least, whatever the experts compute in.
    gate_dtype = torch.promote_types(dtype, torch.float32)
    weights_GTE = draw_gates(num_gates, num_rows, experts.num_experts).to(gate_dtype)
    weights_GTE.requires_grad_()
    leaves = (x_TD, weights_GTE, *stacks_of(experts))
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    bias = next(experts.layers.children()).bias is not None
    wanted = reference_mixture(wide[0], wide[1], wide[2:], experts.activations, bias=bias)
    output = run_experts(experts, x_TD, weights_GTE, kernel)
    assert output.dtype == dtype
    assert_near(output, wanted, TOLERANCES[dtype])
    grad = torch.randn(wanted.shape, dtype=torch.float64).to(dtype).double()
    ours, theirs = gradients(output, grad, *leaves), gradients(wanted, grad, *wide)
    for leaf, got, expected in zip(leaves, ours, theirs, strict=True):
        # The dense kernel also says what a pair of no gate would do if it had weight; the sorted
        # one and the oracle do not look.
        seen = got * (weights_GTE != 0).any(0) if leaf is weights_GTE else got
        assert got.dtype == leaf.dtype
        assert_near(seen, expected, GRADIENT_TOLERANCES[dtype])


@KERNEL
@pytest.mark.parametrize("num_gates", [1, 2])
@pytest.mark.parametrize("num_experts", [3, 5, 17])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_equals_the_oracle_at_every_size(
    kernel: str, num_rows: int, num_experts: int, num_gates: int
) -> None:
    experts = Experts(num_experts, TWO, activation="silu")
    compare(experts, kernel, num_rows=num_rows, num_gates=num_gates)


@KERNEL
@pytest.mark.parametrize("widths", [ONE, TWO, THREE], ids=["one", "two", "three"])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_equals_the_oracle_for_every_activation_and_depth(
    kernel: str, widths: tuple[int, ...], activation: str, *, bias: bool
) -> None:
    experts = Experts(5, widths, activation=activation, output_activation=activation, bias=bias)
    compare(experts, kernel, num_rows=7, num_gates=2)


@KERNEL
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_equals_the_oracle_in_every_precision(kernel: str, dtype: torch.dtype) -> None:
    if kernel == "numba" and dtype is torch.bfloat16:
        pytest.skip("numba has no bfloat16")
    # Smooth: a ReLU whose input rounds across 0 has another gradient, and is right.
    compare(Experts(5, THREE, activation="gelu"), kernel, num_rows=100, num_gates=2, dtype=dtype)


@given(
    kernel=st.sampled_from(CPU_KERNELS),
    num_rows=st.integers(0, 9),
    num_experts=st.integers(1, 6),
    num_gates=st.integers(1, 3),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_oracle_at_any_shape(
    kernel: str,
    num_rows: int,
    num_experts: int,
    num_gates: int,
    widths: list[int],
    dtype: torch.dtype,
) -> None:
    experts = Experts(num_experts, widths, activation="silu")
    compare(experts, kernel, num_rows=num_rows, num_gates=num_gates, dtype=dtype)


@KERNEL
def test_passes_gradcheck(kernel: str) -> None:
    experts = Experts(3, (2, 3, 2), activation="silu").double()
    x_TD = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    weights_GTE = draw_gates(2, 4, 3)
    # Away from 0, or a finite difference would add a pair.
    used = weights_GTE != 0
    values = (torch.randn(int(used.sum()), dtype=torch.float64) + 3).requires_grad_()

    def run(x_TD: Tensor, values: Tensor, *_stacks: Tensor) -> Tensor:
        filled = torch.zeros_like(weights_GTE).masked_scatter(used, values)
        return run_experts(experts, x_TD, filled, kernel)

    assert torch.autograd.gradcheck(run, (x_TD, values, *stacks_of(experts)))


@KERNEL
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.usefixtures("_threads_restored")
def test_repeats_to_the_bit(kernel: str, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    experts = Experts(17, (16, 32, 8))
    x_TD = torch.randn(500, 16, requires_grad=True)
    weights_GTE = draw_gates(2, 500, 17).float().requires_grad_()
    grad = torch.randn(2, 500, 8)
    leaves = (x_TD, weights_GTE, *experts.parameters())

    def run() -> list[Tensor]:
        output = run_experts(experts, x_TD, weights_GTE, kernel)
        return [output, *gradients(output, grad, *leaves)]

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@KERNEL
def test_an_expert_without_rows_gets_a_zero_gradient_and_not_none(kernel: str) -> None:
    experts = Experts(4, TWO)
    weights_GTE = torch.zeros(1, 5, 4)
    weights_GTE[0, :, 1] = 1
    loss = run_experts(experts, torch.randn(5, 6), weights_GTE, kernel).sum()
    torch.autograd.backward(loss)
    for stack in experts.parameters():
        assert stack.grad is not None
        used = stack.grad.flatten(1).any(1)
        assert used.tolist() == [False, True, False, False]


@KERNEL
def test_frozen_parameters_and_inputs_stay_without_gradient(kernel: str) -> None:
    experts = Experts(4, TWO)
    experts.layers[0].requires_grad_(requires_grad=False)
    x_TD = torch.randn(5, 6)
    loss = run_experts(experts, x_TD, draw_gates(1, 5, 4).float(), kernel).sum()
    torch.autograd.backward(loss)
    assert [stack.grad is not None for stack in stacks_of(experts)] == [False, False, True, True]


@KERNEL
def test_any_layout_of_inputs_and_incoming_gradients_gives_the_same(kernel: str) -> None:
    experts = Experts(5, TWO).double()
    x_TD = torch.randn(7, 6, dtype=torch.float64)
    weights_GTE = draw_gates(2, 7, 5)
    grad_GTO = torch.randn(1, 7, 1, dtype=torch.float64).expand(2, 7, 4)

    def run(x_TD: Tensor, weights_GTE: Tensor, grad_GTO: Tensor) -> list[Tensor]:
        x_TD, weights_GTE = x_TD.requires_grad_(), weights_GTE.requires_grad_()
        output = run_experts(experts, x_TD, weights_GTE, kernel)
        return [output, *gradients(output, grad_GTO, x_TD, weights_GTE, *experts.parameters())]

    plain = run(x_TD.clone(), weights_GTE.clone(), grad_GTO.contiguous())
    strided = run(
        x_TD.T.contiguous().T,
        weights_GTE.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        grad_GTO,
    )
    for ours, theirs in zip(strided, plain, strict=True):
        # Products of another layout may add in another order.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    transposed = grad_GTO.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for ours, theirs in zip(run(x_TD, weights_GTE, transposed), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
