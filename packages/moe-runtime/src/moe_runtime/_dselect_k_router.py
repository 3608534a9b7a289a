"""DSelect-k: selectors that spell an expert in binary.

Axes: D features, E experts, K slots.
"""

from collections.abc import Sequence

import array_api_compat.torch as xp
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_non_negative, check_type
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput
from moe_runtime._scores import (
    INITIAL_SCORE,
    INITIAL_SPLIT_SHARE,
    StaticScores,
    linear_scores,
    slot_scores,
)
from moe_runtime._smooth_step_router import SmoothStepRouter


class DSelectKRouter(SmoothStepRouter):
    """DSelect-k: `k` selectors, each choosing an expert by its binary code.

    Rows sum to 1 where `num_experts` is a power of two, else to at most 1: a code may
    stand for no expert. At most `k` experts once the bits of a row are saturated; until then a row
    can use all of them. When hard, each bit is rounded, and gets a gradient of 0: at most `k`
    experts, or none where no code stands for one.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E: any number of at least 2.
    k
        Selectors: once saturated, or when hard, a row uses at most `k` experts.
    gamma
        Width of the smooth step, in units of the scores. See `RouterSchedule`.
    entropy_weight
        Weight of the entropy penalty, which drives the selectors to saturate.
    unreachable_weight
        Weight of the penalty on codes that stand for no expert; matters only where
        `num_experts` is not a power of two. A sum over rows, not a mean.
    static
        The same weights for every row, learned directly: what the features are plays no
        part. Otherwise the scores are linear in each row.
    scale_free
        Count `gamma` in standard deviations of each bit's score, as `update_scale` follows
        them, instead of in the scores' own unit; not for a static gate.
    penalties
        Added to the loss, besides the two.

    References
    ----------
    Hazimeh et al., NeurIPS 2021, arXiv:2106.03760.
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
        static: bool = False,
        scale_free: bool = False,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        # Wrong numbers of experts are refused by the base, which comes second.
        num_bits = max(num_experts - 1, 1).bit_length()
        super().__init__(
            dim,
            num_experts,
            k=k,
            num_decisions=num_bits,
            gamma=gamma,
            entropy_weight=entropy_weight,
            scale_free=scale_free,
            penalties=penalties,
        )
        check_non_negative("unreachable_weight", unreachable_weight)
        check_type("static", static, bool, "a bool")
        if static and scale_free:
            msg = "`scale_free` must be False for a static gate, whose scores vary over no rows."
            raise ValueError(msg)
        self.unreachable_weight = unreachable_weight
        self.static = static
        self.num_bits = num_bits
        bound = INITIAL_SPLIT_SHARE * gamma
        self.bit: nn.Module
        self.selector: nn.Module
        if static:
            self.bit = StaticScores(k * num_bits, bound=bound)
            self.selector = StaticScores(k, bound=INITIAL_SCORE)
        else:
            self.bit = linear_scores(dim, k * num_bits, bound=bound)
            self.selector = linear_scores(dim, k, bound=INITIAL_SCORE)

    def decision_scores(self, x: Tensor) -> Tensor:
        """Scores of the bits."""
        return slot_scores(self.bit, x, self.k)

    def gate(self, x: Tensor) -> GateOutput:
        """Spell each selector's expert."""
        gate = moe_gates.dselect_k_gate(
            self.decision_scores(x),
            slot_scores(self.selector, x, self.k)[..., 0],
            num_experts=self.num_experts,
            gamma=self.gamma,
            hard=self.hard,
            bit_scale=self.scale,
            xp=xp,
        )
        slot_weights = self.with_all_parameters(gate.slot_weights, self.bit)
        if self.static:
            slot_weights = slot_weights.expand(*x.shape[:-1], *slot_weights.shape)
        return GateOutput(slot_weights, gate.slot_probabilities)

    def penalty(self, gate: GateOutput, weights: Tensor) -> Tensor:
        """Add how much of the codes stands for no expert."""
        total = super().penalty(gate, weights)
        if self.num_experts == 2**self.num_bits or self.unreachable_weight == 0:
            return total
        assert gate.slot_probabilities is not None
        unreachable = moe_gates.unreachable_penalty(gate.slot_probabilities, xp=xp)
        return total + self.unreachable_weight * unreachable
