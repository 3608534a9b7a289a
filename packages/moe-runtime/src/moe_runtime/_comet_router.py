"""COMET: trees whose splits become exactly 0 or 1.

Axes: D features, E experts, K slots.
"""

from collections.abc import Sequence

import array_api_compat.torch as xp
from torch import Tensor

import moe_gates
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput
from moe_runtime._scores import INITIAL_SCORE, INITIAL_SPLIT_SHARE, linear_scores, slot_scores
from moe_runtime._smooth_step_router import SmoothStepRouter


class CometRouter(SmoothStepRouter):
    """COMET: `k` soft decision trees whose splits become exactly 0 or 1 as they learn.

    Rows sum to 1. At most `k` experts once the splits of a row are saturated; until then a
    row can use all of them. When hard, each split is rounded, a score of at least 0 goes
    left, and splits get no gradient: at most `k` experts.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E: any number of at least 2.
    k
        Trees: once saturated, or when hard, a row uses at most `k` experts.
    gamma
        Width of the smooth step, in units of the scores. Smaller hardens sooner. See
        `RouterSchedule`.
    entropy_weight
        Weight of the entropy penalty, which drives the trees to saturate.
    scale_free
        Count `gamma` in standard deviations of each split's score, as `update_scale`
        follows them, instead of in the scores' own unit.
    penalties
        Added to the loss, besides the entropy.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        gamma: float = 1.0,
        entropy_weight: float = 0.1,
        scale_free: bool = False,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__(
            dim,
            num_experts,
            k=k,
            num_decisions=num_experts - 1,
            gamma=gamma,
            entropy_weight=entropy_weight,
            scale_free=scale_free,
            penalties=penalties,
        )
        bound = INITIAL_SPLIT_SHARE * gamma
        self.split = linear_scores(dim, k * (num_experts - 1), bound=bound)
        self.leaf = linear_scores(dim, k * num_experts, bound=INITIAL_SCORE)

    def split_scores(self, x: Tensor) -> Tensor:
        """Score of each split in heap order, shape (..., K, E - 1); at least 0 goes left."""
        return slot_scores(self.split, x, self.k)

    def decision_scores(self, x: Tensor) -> Tensor:
        """Scores of the splits."""
        return self.split_scores(x)

    def gate(self, x: Tensor) -> GateOutput:
        """Lead rows through every tree."""
        gate = moe_gates.comet_gate(
            self.split_scores(x),
            slot_scores(self.leaf, x, self.k),
            gamma=self.gamma,
            hard=self.hard,
            split_scale=self.scale,
            xp=xp,
        )
        return GateOutput(gate.slot_weights, gate.slot_probabilities)
