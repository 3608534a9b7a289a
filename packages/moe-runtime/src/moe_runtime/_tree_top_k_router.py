"""Tree top-k: COMET's trees with logistic splits, and exactly k experts at all times.

Axes: D features, E experts.
"""

from collections.abc import Sequence

import array_api_compat.torch as xp
from torch import Tensor

import moe_gates
from moe_runtime._checks import check_positive
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput, Router, warn_if_constant
from moe_runtime._scores import INITIAL_SCORE, linear_scores, slot_scores


class TreeTopKRouter(Router):
    """Soft trees that score the experts together, then the `k` largest of those scores.

    Rows sum to 1 with exactly `k` experts from the first step on; hard routing changes
    nothing. Splits are logistic and never saturate. With k = 1 no gradient reaches the router,
    which is warned of.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E: any number of at least 2.
    k
        Experts a row.
    num_trees
        Trees: as many as `k` by default.
    penalties
        Added to the loss.

    References
    ----------
    Trees: Ibrahim et al., KDD 2023, arXiv:2306.02824. With top-k they are ours.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        num_trees: int | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        check_positive("num_experts", num_experts, minimum=2)
        if num_trees is not None:
            check_positive("num_trees", num_trees)
        # One slot: trees that were permuted each by itself would not select `k` experts together.
        super().__init__(num_experts, k=k, num_slots=1, dim=dim, penalties=penalties)
        warn_if_constant(k, num_experts, "use a `CometRouter`, or `k` >= 2")
        self.num_trees = k if num_trees is None else num_trees
        self.split = linear_scores(dim, self.num_trees * (num_experts - 1), bound=INITIAL_SCORE)
        self.leaf = linear_scores(dim, self.num_trees * num_experts, bound=INITIAL_SCORE)

    def gate(self, x: Tensor) -> GateOutput:
        """Score the experts in every tree."""
        gate = moe_gates.tree_top_k_gate(
            slot_scores(self.split, x, self.num_trees),
            slot_scores(self.leaf, x, self.num_trees),
            k=self.k,
            xp=xp,
        )
        return GateOutput(gate.weights[..., None, :], gate.slot_probabilities)
