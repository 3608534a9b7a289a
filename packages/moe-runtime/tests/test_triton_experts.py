"""The Triton kernels give the loop's output, and its gradient for everything."""

import pytest
import torch
from _reference import ACTIVATIONS, draw_gates
from _triton_reference import DEVICE, GATED, TOLERANCES, compare, draw_stacks, require_triton
from torch import Tensor

from moe_runtime._triton import run_experts

require_triton()

TWO = ("swiglu", "identity")
# Widths are off the grid: tiles of the interpreter are 32 wide.
WIDTHS = (5, 35, 33)


@pytest.mark.parametrize(
    ("num_rows", "num_experts", "num_gates"),
    [(0, 3, 1), (0, 5, 2), (1, 1, 1), (1, 5, 2), (7, 17, 1), (7, 3, 3), (100, 3, 1), (100, 5, 2)],
)
def test_equals_the_loop_at_every_size(num_rows: int, num_experts: int, num_gates: int) -> None:
    compare(TWO, WIDTHS, num_rows=num_rows, num_experts=num_experts, num_gates=num_gates)


@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATED])
def test_equals_the_loop_for_every_activation(name: str) -> None:
    compare((name, "identity"), (5, 7, 3))
    compare(("silu", name), (5, 7, 3))


@pytest.mark.parametrize("activations", [("identity",), ("swiglu",), ("gelu", "geglu", "identity")])
@pytest.mark.parametrize("num_gates", [1, 2])
def test_equals_the_loop_at_every_depth(activations: tuple[str, ...], num_gates: int) -> None:
    compare(activations, (5, 35, 7, 3)[: len(activations) + 1], num_gates=num_gates)


@pytest.mark.parametrize("num_gates", [1, 2])
def test_equals_the_loop_without_biases(num_gates: int) -> None:
    compare(TWO, WIDTHS, num_gates=num_gates, has_bias=False)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("num_gates", [1, 2])
def test_equals_the_loop_in_every_precision(dtype: torch.dtype, num_gates: int) -> None:
    compare(TWO, (40, 35, 33), num_rows=40, num_gates=num_gates, dtype=dtype)


def test_equals_the_loop_where_all_rows_use_all_experts() -> None:
    compare(TWO, WIDTHS, weights_GTE=torch.rand(1, 40, 3) + 0.1)


def test_is_zero_and_so_are_its_gradients_where_no_row_uses_any() -> None:
    compare(TWO, WIDTHS, weights_GTE=torch.zeros(1, 7, 3))


def run(
    x_TD: Tensor,
    weights_GTE: Tensor,
    stacks: list[Tensor],
    grad_GTO: Tensor | None = None,
    *,
    max_active: int | None = None,
) -> list[Tensor]:
    x_TD, weights_GTE = x_TD.detach().requires_grad_(), weights_GTE.detach().requires_grad_()
    output = run_experts(x_TD, weights_GTE, stacks, TWO, max_active=max_active)
    grad_GTO = torch.ones_like(output) if grad_GTO is None else grad_GTO
    return [output, *torch.autograd.grad(output, (x_TD, weights_GTE, *stacks), grad_GTO)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def draw(num_gates: int = 1) -> tuple[Tensor, Tensor, list[Tensor]]:
    weights_GTE = draw_gates(num_gates, 40, 5).float()
    return torch.randn(40, 5, device=DEVICE), weights_GTE.to(DEVICE), draw_stacks(5, WIDTHS, TWO)


@pytest.mark.parametrize("num_gates", [1, 2])
def test_repeats_to_the_bit(num_gates: int) -> None:
    inputs = draw(num_gates)
    first = run(*inputs)
    for _ in range(2):
        assert_equal(run(*inputs), first)


def test_room_for_more_pairs_than_there_are_changes_nothing() -> None:
    inputs = draw()
    assert_equal(run(*inputs, max_active=5), run(*inputs))


def test_any_layout_of_inputs_and_incoming_gradients_gives_the_same() -> None:
    x_TD, weights_GTE, stacks = draw(2)
    grad_GTO = torch.randn(1, 40, 1, device=DEVICE).expand(2, 40, 33)
    strided = [stack.detach().mT.contiguous().mT.requires_grad_() for stack in stacks]
    assert not strided[0].is_contiguous()
    ours = run(x_TD.T.contiguous().T, weights_GTE.mT.contiguous().mT, strided, grad_GTO)
    assert_equal(ours, run(x_TD, weights_GTE, stacks, grad_GTO.contiguous()))


def test_frozen_parameters_and_inputs_stay_without_gradient() -> None:
    x_TD, weights_GTE, stacks = draw()
    for stack in stacks[:2]:
        stack.requires_grad = False
    torch.autograd.backward(run_experts(x_TD, weights_GTE, stacks, TWO).sum())
    assert [stack.grad is not None for stack in stacks] == [False, False, True, True]


def test_inference_gives_the_output_of_training_to_the_bit() -> None:
    x_TD, weights_GTE, stacks = draw()
    trained = run_experts(x_TD, weights_GTE, stacks, TWO)
    with torch.inference_mode():
        assert torch.equal(run_experts(x_TD, weights_GTE, stacks, TWO), trained)


def test_a_double_precision_input_is_refused() -> None:
    x_TD, weights_GTE, stacks = draw()
    with pytest.raises(ValueError, match=r"^`x` must be one of .*, got torch.float64\.$"):
        run_experts(x_TD.double(), weights_GTE, stacks, TWO)
