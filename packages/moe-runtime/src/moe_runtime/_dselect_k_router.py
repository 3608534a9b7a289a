"""DSelect-k: selectors that spell an expert in binary."""

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


class DSelectKRouter(Router):
    """DSelect-k, per example: `k` selectors, each choosing an expert by its binary code.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Selectors: once saturated, or when hard, a row uses at most `k` experts.
    gamma
        Width of the smooth step, in units of the scores.
    entropy_weight
        Weight of the entropy penalty, which drives the selectors to saturate.
    unreachable_weight
        Weight of the penalty on codes that stand for no expert; matters only where
        `num_experts` is not a power of two.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        gamma: float = 1.0,
        entropy_weight: float = 0.1,
        unreachable_weight: float = 1.0,
    ) -> None:
        check_positive("num_experts", num_experts, minimum=2)
        super().__init__(num_experts, k=k, num_slots=k)
        check_positive("dim", dim)
        self.in_features = dim
        moe_gates.check_gamma(gamma)
        check_non_negative("entropy_weight", entropy_weight)
        check_non_negative("unreachable_weight", unreachable_weight)
        self.gamma = gamma
        self.entropy_weight = entropy_weight
        self.unreachable_weight = unreachable_weight
        self.num_bits = (num_experts - 1).bit_length()
        self.bit = nn.Linear(dim, k * self.num_bits)
        self.selector = nn.Linear(dim, k)
        initialise(self.bit, INITIAL_SPLIT_SHARE * gamma)
        initialise(self.selector, INITIAL_SCORE)

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each selector's weights, and the entropy and reachability penalties."""
        check_last_axis("router_input", x, self.bit.in_features)
        gate = moe_gates.dselect_k_gate(
            torch.unflatten(linear_float32(self.bit, x), -1, (self.k, self.num_bits)),
            linear_float32(self.selector, x),
            num_experts=self.num_experts,
            gamma=self.gamma,
            hard=self.hard,
            xp=xp,
        )
        penalty = self.entropy_weight * moe_gates.entropy_penalty(gate.slot_probabilities, xp=xp)
        if self.num_experts != 2**self.num_bits:
            unreachable = moe_gates.unreachable_penalty(gate.slot_probabilities, xp=xp)
            penalty = penalty + self.unreachable_weight * unreachable
        return gate.slot_weights, penalty
