"""COMET one row, one tree and one node at a time."""

import torch
from torch import Tensor

from moe_runtime._comet_walk import Nodes

# All small sizes, complete trees and others, and one that is deep.
NUM_EXPERTS = [*range(2, 18), 31, 64, 1000]


def experts_of_leaves(num_experts: int) -> dict[int, int]:
    """Number the leaves of a heap from left to right."""
    found: dict[int, int] = {}

    def number(node: int) -> None:
        if node >= num_experts - 1:
            found[node] = len(found)
        else:
            number(2 * node + 1)
            number(2 * node + 2)

    number(0)
    return found


def whole_numbers(
    num_experts: int, num_slots: int, num_rows: int, dim: int
) -> tuple[Tensor, Nodes]:
    """Draw rows and nodes whose scores are exact in any order of summation, with ties at 0."""
    num_splits, num_leaves = num_slots * (num_experts - 1), num_slots * num_experts
    shapes = [(num_rows, dim), (num_splits, dim), (num_splits,), (num_leaves, dim), (num_leaves,)]
    x_TD, *parts = (torch.randint(-2, 3, shape).double() for shape in shapes)
    return x_TD, Nodes(*parts)


def reference_walk(x_TD: Tensor, nodes: Nodes, num_slots: int) -> tuple[Tensor, Tensor]:
    """Positions and shares (T, K) of hard trees."""
    num_experts = nodes.leaf_bias.shape[0] // num_slots
    expert_of = experts_of_leaves(num_experts)
    positions, scores = [], []
    for x_D in x_TD:
        for slot in range(num_slots):
            node = 0
            while node < num_experts - 1:
                at = slot * (num_experts - 1) + node
                goes_left = float(nodes.split_weight[at] @ x_D + nodes.split_bias[at]) >= 0
                node = 2 * node + (1 if goes_left else 2)
            positions.append(expert_of[node])
            leaf = slot * num_experts + positions[-1]
            scores.append(float(nodes.leaf_weight[leaf] @ x_D + nodes.leaf_bias[leaf]))
    shape = (len(x_TD), num_slots)
    shares = torch.tensor(scores, dtype=torch.float64).reshape(shape).softmax(-1)
    return torch.tensor(positions, dtype=torch.int64).reshape(shape), shares


def reference_gate(
    split_TKN: Tensor, leaf_TKE: Tensor, gamma: float, *, hard: bool = False
) -> tuple[Tensor, Tensor]:
    """Weights and probabilities (T, K, E) by a recursion over nodes; differentiable."""
    num_experts = leaf_TKE.shape[-1]
    expert_of = experts_of_leaves(num_experts)
    probabilities: dict[int, Tensor] = {}

    def go(node: int, reached_TK: Tensor) -> None:
        if node >= num_experts - 1:
            probabilities[expert_of[node]] = reached_TK
            return
        score = split_TKN[..., node]
        u = (score / gamma + 0.5).clamp(0, 1)
        left = (score >= 0).to(score.dtype) if hard else 3 * u**2 - 2 * u**3
        go(2 * node + 1, reached_TK * left)
        go(2 * node + 2, reached_TK * (1 - left))

    go(0, torch.ones_like(split_TKN[..., 0]))
    p_TKE = torch.stack([probabilities[expert] for expert in range(num_experts)], -1)
    mass = p_TKE * torch.exp(leaf_TKE - leaf_TKE.amax((-2, -1), keepdim=True).detach())
    return mass / mass.sum((-2, -1), keepdim=True), p_TKE
