"""A plan lists each selected pair once, in both of its orders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_runtime._plan import Plan, gate_weights, make_plan


def pairs_of(plan: Plan) -> list[tuple[int, int]]:
    """(expert, row) of each pair, in the order of the plan."""
    return list(zip(*(each.tolist() for each in plan.expert_and_row_P), strict=True))


def draw(num_gates: int, num_rows: int, num_experts: int, share: float) -> Tensor:
    shape = (num_gates, num_rows, num_experts)
    return torch.randn(shape) * (torch.rand(shape) < share)


@given(
    num_gates=st.integers(1, 3),
    num_rows=st.integers(0, 9),
    num_experts=st.integers(1, 6),
    share=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
)
def test_lists_the_union_of_the_gates_pairs_by_expert_and_by_row(
    num_gates: int, num_rows: int, num_experts: int, share: float
) -> None:
    weights_GTE = draw(num_gates, num_rows, num_experts, share)
    plan = make_plan(weights_GTE)
    expected = [
        (expert, row)
        for expert in range(num_experts)
        for row in range(num_rows)
        if any(weights_GTE[gate, row, expert] != 0 for gate in range(num_gates))
    ]
    pairs = pairs_of(plan)
    assert pairs == expected
    assert plan.num_pairs == len(expected)
    assert plan.num_rows == num_rows
    assert plan.counts_E == [sum(e == expert for e, _ in expected) for expert in range(num_experts)]
    by_row = [pairs[position] for position in plan.by_row_P.tolist()]
    assert by_row == sorted(expected, key=lambda pair: pair[::-1])
    starts = [sum(r < row for _, r in expected) for row in range(num_rows)]
    assert plan.row_start_T.tolist() == starts
    assert plan.num_used == len({expert for expert, _ in expected})


def test_a_negative_weight_is_a_pair_and_a_negative_zero_is_none() -> None:
    plan = make_plan(torch.tensor([[[-0.5, 0.0], [-0.0, 1e-38]]]))
    assert pairs_of(plan) == [(0, 0), (1, 1)]


def test_gates_whose_weights_cancel_still_share_a_pair() -> None:
    assert pairs_of(make_plan(torch.tensor([[[1.0]], [[-1.0]]]))) == [(0, 0)]


def test_nothing_is_listed_without_rows() -> None:
    plan = make_plan(torch.zeros(2, 0, 3))
    assert (plan.num_pairs, plan.num_rows, plan.counts_E) == (0, 0, [0, 0, 0])


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
def test_gate_weights_are_those_of_the_pairs_and_pass_their_gradient_back(layout: str) -> None:
    weights_GTE = {
        "contiguous": draw(2, 7, 5, 0.4),
        "transposed": draw(2, 5, 7, 0.4).transpose(1, 2),
        "expanded": draw(1, 7, 5, 0.4).expand(2, 7, 5),
    }[layout].requires_grad_()
    plan = make_plan(weights_GTE)
    expert_P, row_P = plan.expert_and_row_P
    weights_GP = gate_weights(weights_GTE, plan)
    torch.testing.assert_close(weights_GP, weights_GTE[:, row_P, expert_P], rtol=0, atol=0)
    grad_GP = torch.randn(weights_GP.shape)
    (grad,) = torch.autograd.grad(weights_GP, weights_GTE, grad_GP)
    expected = torch.zeros(2, 7, 5)
    expected[:, row_P, expert_P] = grad_GP
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)
