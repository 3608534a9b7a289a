"""COMET: trees whose splits become exactly 0 or 1.

Axes: E experts, K slots.
"""

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_last_axis, check_non_negative, check_positive
from moe_runtime._router import Router
from moe_runtime._scores import (
    INITIAL_SCORE,
    INITIAL_SPLIT_SHARE,
    initialise,
    linear_float32,
)


class CometRouter(Router):
    """COMET: `k` soft decision trees whose splits become exactly 0 or 1 as they learn.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E: any number of at least 2.
    k
        Trees: once saturated, or when hard, a row uses at most `k` experts.
    gamma
        Width of the smooth step, in units of the scores. Smaller hardens sooner.
    entropy_weight
        Weight of the entropy penalty, which drives the trees to saturate.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        gamma: float = 1.0,
        entropy_weight: float = 0.1,
    ) -> None:
        check_positive("num_experts", num_experts, minimum=2)
        super().__init__(num_experts, k=k, num_slots=k)
        check_positive("dim", dim)
        self.in_features = dim
        moe_gates.check_gamma(gamma)
        check_non_negative("entropy_weight", entropy_weight)
        self.gamma = gamma
        self.entropy_weight = entropy_weight
        self.split = nn.Linear(dim, k * (num_experts - 1))
        self.leaf = nn.Linear(dim, k * num_experts)
        initialise(self.split, INITIAL_SPLIT_SHARE * gamma)
        initialise(self.leaf, INITIAL_SCORE)

    def split_scores(self, x: Tensor) -> Tensor:
        """Score of each split in heap order, shape (..., K, E - 1); at least 0 goes left."""
        check_last_axis("router_input", x, self.split.in_features)
        scores = linear_float32(self.split, x)
        return torch.unflatten(scores, -1, (self.k, self.num_experts - 1))

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each tree's weights, and the entropy penalty."""
        gate = moe_gates.comet_gate(
            self.split_scores(x),
            torch.unflatten(linear_float32(self.leaf, x), -1, (self.k, self.num_experts)),
            gamma=self.gamma,
            hard=self.hard,
            xp=xp,
        )
        penalty = self.entropy_weight * moe_gates.entropy_penalty(gate.slot_probabilities, xp=xp)
        return gate.slot_weights, penalty
