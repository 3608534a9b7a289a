"""COMET: trees whose splits become exactly 0 or 1.

Axes: D features, E experts, K slots.
"""

from collections.abc import Sequence

import array_api_compat.torch as xp
import torch
from torch import Tensor

import moe_gates
from moe_runtime._comet_gate import fused_comet_gate
from moe_runtime._comet_kernel import CometKernel, check_comet_kernel, choose_comet_kernel
from moe_runtime._comet_walk import Nodes, spread, walk_by_gather, walk_by_numba
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput, Routing
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
    kernel
        ``"dense"`` scores every node of the trees, ``"torch"`` only those on a row's paths
        where the router is hard; ``"numba"`` (extra ``numba``, CPU) does so without a
        gradient, and takes a few passes over all nodes otherwise. ``"auto"`` takes numba where
        it is installed, and the faster of the others where not. Compiled and exported models
        never hold numba. The answer is the same up to rounding. See `explain`.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.CometRouter(6, 64, k=2, kernel="torch")
    >>> with torch.no_grad(), moe_runtime.hard_routing(router):
    ...     print(router.explain(torch.randn(5, 6)))
    torch walk: asked for

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
        kernel: str = "auto",
    ) -> None:
        check_comet_kernel("kernel", kernel)
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
        self.kernel = kernel
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
        splits, leaves = self.split_scores(x), slot_scores(self.leaf, x, self.k)
        if self._choose(x).name == "numba":
            splits = splits if self.scale is None else splits / self.scale
            return GateOutput(*fused_comet_gate(splits, leaves, gamma=self.gamma, hard=self.hard))
        gate = moe_gates.comet_gate(
            splits, leaves, gamma=self.gamma, hard=self.hard, split_scale=self.scale, xp=xp
        )
        slot_weights = self.with_all_parameters(gate.slot_weights, self.split)
        return GateOutput(slot_weights, gate.slot_probabilities)

    def explain(self, x: Tensor) -> str:
        """Say what routes such rows, here and now, and why; see `kernel`."""
        kernel = self._choose(x)
        return f"{kernel.name} {'walk' if kernel.walks else 'gate'}: {kernel.reason}"

    def _choose(self, x: Tensor) -> CometKernel:
        parameters = (*self.split.parameters(), *self.leaf.parameters())
        # A walk knows no probabilities of experts, which penalties of the user's may look at.
        hard = self.hard and not self.penalties
        size = {"k": self.k, "num_experts": self.num_experts}
        return choose_comet_kernel(self.kernel, x, parameters, hard=hard, **size)

    def _route(self, x: Tensor) -> Routing:
        kernel = self._choose(x)
        return self._walk(x, kernel.name) if kernel.walks else super()._route(x)

    def _walk(self, x: Tensor, kernel: str) -> Routing:
        """Route hard rows along their paths."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, x.shape[-1])
        parts = (self.split.weight, self.split.bias, self.leaf.weight, self.leaf.bias)
        nodes = Nodes(*(part.to(rows.dtype) for part in parts))
        walk = (walk_by_numba if kernel == "numba" else walk_by_gather)(rows, nodes, self.k)
        weights, slot_weights = (
            self.with_all_parameters(each, self.split) for each in spread(walk, self.permutation)
        )
        # Each tree reaches one leaf: the entropy of a row is that of any other.
        one_hot = rows.new_ones(min(rows.shape[0], 1), self.k, 1)
        leading = x.shape[:-1]
        return Routing(
            weights.reshape(*leading, self.num_experts),
            self.penalty(GateOutput(slot_weights, one_hot), weights),
            slot_weights.reshape(*leading, self.k, self.num_experts),
        )
