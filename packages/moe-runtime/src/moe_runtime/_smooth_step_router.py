"""What COMET and DSelect-k share: smooth steps of a width, their unit, and their entropy.

Axes: K slots, S decisions of a slot (splits or bits).
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_non_negative, check_positive, check_type
from moe_runtime._penalties import Penalty
from moe_runtime._router import GateOutput, Router

# Share of a batch in the moving deviation of the scores, once that of the mean is smaller: as
# in `moe_gates.score_scale`.
SCALE_RATE = 0.01


class SmoothStepRouter(Router):
    """Base of the routers whose decisions are exactly 0 or 1 outside of a band.

    `gamma`, which a `RouterSchedule` may change, decides what a soft router answers: it is
    part of the state, as the extra state of `torch.nn.Module`.
    """

    always_at_most_k: ClassVar[bool] = False
    float32_buffers: ClassVar[tuple[str, ...]] = ("scale",)
    scale: Tensor | None
    num_scale_updates: Tensor | None

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        k: int,
        num_decisions: int,
        gamma: float,
        entropy_weight: float,
        scale_free: bool,
        penalties: Sequence[Penalty],
    ) -> None:
        check_positive("num_experts", num_experts, minimum=2)
        super().__init__(num_experts, k=k, num_slots=k, dim=dim, penalties=penalties)
        moe_gates.check_gamma(gamma)
        check_non_negative("entropy_weight", entropy_weight)
        check_type("scale_free", scale_free, bool, "a bool")
        self.gamma = gamma
        self.entropy_weight = entropy_weight
        self.register_buffer("scale", torch.ones(k, num_decisions) if scale_free else None)
        counter = torch.zeros((), dtype=torch.int64) if scale_free else None
        self.register_buffer("num_scale_updates", counter)

    @abstractmethod
    def decision_scores(self, x: Tensor) -> Tensor:
        """Scores of the splits or bits, shape (..., K, S)."""

    def with_all_parameters(self, weights: Tensor, module: nn.Module) -> Tensor:
        """Give the parameters of what hard routing rounds a gradient of 0."""
        return super().with_all_parameters(weights, module) if self.hard else weights

    def penalty(self, gate: GateOutput, weights: Tensor) -> Tensor:
        """Add the entropy of the slots."""
        total = super().penalty(gate, weights)
        if self.entropy_weight == 0:
            return total
        assert gate.slot_probabilities is not None
        return total + self.entropy_weight * moe_gates.entropy_penalty(
            gate.slot_probabilities, xp=xp
        )

    @torch.no_grad()
    def update_scale(self, x: Tensor) -> None:
        """Let the unit of `gamma` follow the standard deviations of the scores.

        The first update takes that of its batch, later ones a moving mean. Call it with the
        rows of each training step, after the optimiser's step, and not any more after training.

        Parameters
        ----------
        x
            The router's input, shape (..., D).

        Raises
        ------
        ValueError
            If the router was made without `scale_free`, or `x` has another width.
        """
        if self.scale is None or self.num_scale_updates is None:
            msg = "`scale_free` must be True for a scale to be updated, got False."
            raise ValueError(msg)
        self.check_rows(x)
        with torch.autocast(x.device.type, enabled=False):
            batch_scale = moe_gates.score_scale(self.decision_scores(x), xp=xp)
        self.num_scale_updates += 1
        rate = (1 / self.num_scale_updates).clamp(min=SCALE_RATE)
        self.scale += rate * (batch_scale - self.scale)

    def get_extra_state(self) -> Tensor:
        """Return `gamma`."""
        return torch.tensor(self.gamma, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Set `gamma`."""
        self.gamma = float(state)
