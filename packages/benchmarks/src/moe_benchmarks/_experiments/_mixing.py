"""The paper's relaxed permutation: experts are mixed softly while it is being learned.

Axes: T rows, K slots, E experts.
"""

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_localsearch import (
    Relaxation,
    RelaxationState,
    paper_schedule,
    permutation_penalty,
    round_to_permutation,
)
from moe_runtime import GateOutput, Router

PENALTY_WEIGHT = 1e-4  # of the permutation's entropy, as published


class SoftPermutation(nn.Module):
    """One relaxed permutation for all gates, which gets colder until it is frozen.

    Sources: Ibrahim et al., KDD 2023, arXiv:2306.02824, supplement; its schedule is that of
    `moe_localsearch.paper_schedule`.
    """

    done_steps: Tensor
    frozen: Tensor

    def __init__(self, num_experts: int, *, num_steps: int, seed: int) -> None:
        super().__init__()
        self.relaxation = Relaxation(num_experts, num_steps, paper_schedule)
        start = self.relaxation.init(seed=seed, xp=torch, dtype=torch.float32)
        self.log_weights = nn.Parameter(start.log_weights)
        self.register_buffer("done_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def matrix(self) -> Tensor:
        """Return the soft permutation, (E, E), at the temperature of this step."""
        return self.matrix_at(self.log_weights, int(self.done_steps))

    def matrix_at(self, log_weights_EE: Tensor, step: int) -> Tensor:
        """Return the soft permutation of other log weights, at the temperature of a step."""
        state = RelaxationState(log_weights_EE, step)
        soft: Tensor = self.relaxation.matrix(state, xp=xp).matrix
        return soft

    def permutation(self) -> Tensor:
        """Return the nearest permutation, (E,)."""
        rounded = round_to_permutation(self.matrix().detach())
        return torch.from_numpy(rounded).to(self.log_weights.device)

    def penalty(self, matrix_EE: Tensor) -> Tensor:
        """Return what drives the matrix towards a permutation."""
        penalty: Tensor = PENALTY_WEIGHT * permutation_penalty(matrix_EE, xp=xp)
        return penalty


class MixedRouter(Router):
    """A router whose weights a soft permutation mixes in training, until it is frozen.

    In evaluation the experts are relabelled by the nearest permutation; once frozen, by the
    one that was set. Weights are normalised after mixing, except those of DSelect-k, as
    published, and of ReLU.
    """

    always_at_most_k = False

    def __init__(self, inner: Router, soft: SoftPermutation, *, normalized: bool) -> None:
        super().__init__(
            inner.num_experts, k=inner.k, num_slots=inner.num_slots, dim=inner.in_features
        )
        self.inner = inner
        self.normalized = normalized
        # Not a submodule here: it is shared by several routers, and belongs to the model.
        object.__setattr__(self, "soft", soft)
        self.soft: SoftPermutation
        self.matrix_EE: Tensor | None = None  # of this step, computed once for all routers

    def check_shared_input(self, x: Tensor) -> None:
        """Refuse what the router inside refuses."""
        self.inner.check_shared_input(x)

    def gate(self, x: Tensor) -> GateOutput:
        """Mix what the router inside gives to each position."""
        gate = self.inner.gate(x)
        if self.soft.frozen:
            return gate
        if self.training:
            assert self.matrix_EE is not None
            mixed = moe_gates.mix(gate.slot_weights, self.matrix_EE, xp=xp)
        else:
            order = self.soft.permutation().argsort()
            mixed = gate.slot_weights[..., order]
        if self.normalized:
            mixed = mixed / mixed.sum((-1, -2), keepdim=True)
        return GateOutput(mixed, gate.slot_probabilities, gate.scores)

    def penalty(self, gate: GateOutput, weights: Tensor) -> Tensor:
        """Return the penalty of the router inside."""
        return self.inner.penalty(gate, weights)
