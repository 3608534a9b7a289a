"""Top-k: the experts with the largest scores."""

import array_api_compat.torch as xp
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_last_axis, check_positive
from moe_runtime._router import Router
from moe_runtime._scores import linear_float32


class TopKRouter(Router):
    """Linear scores, then a softmax over the `k` largest.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    k
        Experts a row.
    """

    def __init__(self, dim: int, num_experts: int, *, k: int) -> None:
        super().__init__(num_experts, k=k, num_slots=1)
        check_positive("dim", dim)
        self.in_features = dim
        self.score = nn.Linear(dim, num_experts)

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return exactly `k` non-zero weights a row, and no penalty."""
        check_last_axis("router_input", x, self.score.in_features)
        weights = moe_gates.top_k_gate(linear_float32(self.score, x), k=self.k, xp=xp)
        return weights[..., None, :], weights.new_zeros(())
