"""Routers: the gates of `moe_gates` with their parameters.

Axes: E experts, K slots.
"""

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_last_axis, check_non_negative, check_positive, check_tensor
from moe_runtime._comet_gate import fused_comet_gate
from moe_runtime._comet_kernel import CometKernel, check_comet_kernel, choose_comet_kernel
from moe_runtime._comet_walk import Nodes, spread, walk_by_gather, walk_by_numba
from moe_runtime._router import Router, Routing, linear_float32

# Half-width of the uniform initial leaf and selector scores, in nats (PAPER: COMET, supplement).
INITIAL_SCORE = 0.05
# Initial split scores lie within this share of `gamma`, in the middle of the smooth step.
INITIAL_SPLIT_SHARE = 0.01


class HashRouter(Router):
    """One expert a row, drawn once at random for each id.

    Parameters
    ----------
    num_ids
        Ids are integers in ``[0, num_ids)``.
    num_experts
        Number of experts, E.
    seed
        Seed of the table.
    """

    table: Tensor

    def __init__(self, num_ids: int, num_experts: int, *, seed: int = 0) -> None:
        super().__init__(num_experts, k=1, num_slots=1)
        check_positive("num_ids", num_ids)
        self.num_ids = num_ids
        table = moe_gates.hash_table(num_ids, num_experts=num_experts, seed=seed, xp=xp)
        self.register_buffer("table", table)

    def check_shared_input(self, x: Tensor) -> None:  # noqa: ARG002 - refused, whatever it is
        """Refuse: features are no ids."""
        msg = "`router_input` is required for a HashRouter: integer ids."
        raise ValueError(msg)

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return one-hot weights for ids of any shape, and no penalty."""
        if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
            msg = f"`router_input` must hold integer ids for a HashRouter, got dtype {x.dtype}."
            raise ValueError(msg)
        if not torch.compiler.is_exporting() and ((x < 0) | (x >= self.num_ids)).any():
            low, high = int(x.min()), int(x.max())
            msg = f"`router_input` must hold ids in [0, {self.num_ids}), got {low}..{high}."
            raise ValueError(msg)
        # index_select (torch 2.13) takes no narrower integers than int32.
        weights = moe_gates.hash_gate(
            x.long(), self.table, num_experts=self.num_experts, dtype=torch.float32, xp=xp
        )
        return weights[..., None, :], weights.new_zeros(())


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
        _initialise(self.bit, INITIAL_SPLIT_SHARE * gamma)
        _initialise(self.selector, INITIAL_SCORE)

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
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        gamma: float = 1.0,
        entropy_weight: float = 0.1,
        kernel: str = "auto",
    ) -> None:
        check_positive("num_experts", num_experts, minimum=2)
        super().__init__(num_experts, k=k, num_slots=k)
        check_positive("dim", dim)
        self.in_features = dim
        moe_gates.check_gamma(gamma)
        check_non_negative("entropy_weight", entropy_weight)
        check_comet_kernel("kernel", kernel)
        self.kernel = kernel
        self.gamma = gamma
        self.entropy_weight = entropy_weight
        self.split = nn.Linear(dim, k * (num_experts - 1))
        self.leaf = nn.Linear(dim, k * num_experts)
        _initialise(self.split, INITIAL_SPLIT_SHARE * gamma)
        _initialise(self.leaf, INITIAL_SCORE)

    def split_scores(self, x: Tensor) -> Tensor:
        """Score of each split in heap order, shape (..., K, E - 1); at least 0 goes left."""
        check_last_axis("router_input", x, self.split.in_features)
        scores = linear_float32(self.split, x)
        return torch.unflatten(scores, -1, (self.k, self.num_experts - 1))

    def forward(self, x: Tensor) -> Routing:
        """Route rows: weights (..., E) for input of shape (..., D)."""
        check_tensor("x", x)
        check_last_axis("router_input", x, self.split.in_features)
        kernel = self._choose(x)
        return self._walk(x, kernel.name) if kernel.walks else super().forward(x)

    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each tree's weights, and the entropy penalty."""
        splits = self.split_scores(x)
        leaves = torch.unflatten(linear_float32(self.leaf, x), -1, (self.k, self.num_experts))
        options: dict[str, Any] = {"gamma": self.gamma, "hard": self.hard}
        if self._choose(x).name == "numba":
            slot_weights, probabilities = fused_comet_gate(splits, leaves, **options)
        else:
            gate = moe_gates.comet_gate(splits, leaves, **options, xp=xp)
            slot_weights, probabilities = gate.slot_weights, gate.slot_probabilities
        return slot_weights, self._penalty(probabilities)

    def explain(self, x: Tensor) -> str:
        """Say what routes such rows, here and now, and why; see `kernel`."""
        kernel = self._choose(x)
        return f"{kernel.name} {'walk' if kernel.walks else 'gate'}: {kernel.reason}"

    def _choose(self, x: Tensor) -> CometKernel:
        parameters = (*self.split.parameters(), *self.leaf.parameters())
        size = {"k": self.k, "num_experts": self.num_experts}
        return choose_comet_kernel(self.kernel, x, parameters, hard=self.hard, **size)

    def _walk(self, x: Tensor, kernel: str) -> Routing:
        """Route hard rows along their paths."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, x.shape[-1])
        parts = (self.split.weight, self.split.bias, self.leaf.weight, self.leaf.bias)
        nodes = Nodes(*(part.to(rows.dtype) for part in parts))
        walk = (walk_by_numba if kernel == "numba" else walk_by_gather)(rows, nodes, self.k)
        weights, slot_weights = spread(walk, self.permutation)
        # Each tree reaches one leaf: the entropy of a row is that of any other.
        one_hot = rows.new_ones(min(rows.shape[0], 1), self.k, 1)
        leading = x.shape[:-1]
        return Routing(
            weights.reshape(*leading, self.num_experts),
            self._penalty(one_hot),
            slot_weights.reshape(*leading, self.k, self.num_experts),
        )

    def _penalty(self, probabilities: Tensor) -> Tensor:
        return self.entropy_weight * moe_gates.entropy_penalty(probabilities, xp=xp)


def _initialise(layer: nn.Linear, bound: float) -> None:
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
