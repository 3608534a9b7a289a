"""Which (row, expert) pairs are computed, and in which order.

Axes: T rows, E experts, G gates, P (row, expert) pairs.
"""

from functools import cached_property

import torch
from torch import Tensor


class Plan:
    """The (row, expert) pairs with a non-zero weight.

    Made of no more than a mask; a kernel asks for what it needs of the rest. Rows without
    experts, experts without rows and T = 0 are all fine.
    """

    def __init__(self, mask_TE: Tensor, *, max_active: int | None = None) -> None:
        self.mask_TE = mask_TE
        # Most experts of a row, where the routers vouch for it: a bound of the pairs for which
        # nothing waits for the device.
        self.max_active = max_active

    @property
    def num_rows(self) -> int:
        """Number of rows, those without any expert included."""
        return self.mask_TE.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts, those without any row included."""
        return self.mask_TE.shape[1]

    @cached_property
    def counts_E(self) -> list[int]:
        """Pairs of each expert. Waits for the device; nothing else in a plan does twice."""
        counts: list[int] = self.mask_TE.sum(0).tolist()
        return counts

    @cached_property
    def num_pairs(self) -> int:
        """Number of (row, expert) pairs: the experts' whole work."""
        return sum(self.counts_E)

    @cached_property
    def num_used(self) -> int:
        """Number of experts that have a row."""
        return sum(count > 0 for count in self.counts_E)

    @cached_property
    def expert_and_row_P(self) -> tuple[Tensor, Tensor]:
        """Expert and row (int64) of each pair, sorted by expert and then by row."""
        expert_P, row_P = self.mask_TE.T.nonzero(as_tuple=True)
        return expert_P, row_P

    @property
    def row_P(self) -> Tensor:
        """Row of each pair, sorted by expert and then by row."""
        return self.expert_and_row_P[1]

    @cached_property
    def by_row_P(self) -> Tensor:
        """The sorted pairs again, now by row and then by expert: where each stands (int64)."""
        # A running count along the sorted order is each pair's position in it; reading it
        # row by row sorts the pairs by row without a sort.
        mask_ET = self.mask_TE.T
        position_ET = mask_ET.reshape(-1).cumsum(0).view(mask_ET.shape) - 1
        return position_ET.T[self.mask_TE]

    @cached_property
    def row_start_T(self) -> Tensor:
        """Where each row begins in `by_row_P`."""
        per_row_T = self.mask_TE.sum(1)
        return per_row_T.cumsum(0) - per_row_T


def make_plan(weights_GTE: Tensor, *, max_active: int | None = None) -> Plan:
    """Plan the pairs that at least one gate gives a non-zero weight, each once."""
    mask_GTE = weights_GTE != 0
    mask_TE = mask_GTE[0] if mask_GTE.shape[0] == 1 else mask_GTE.any(0)
    return Plan(mask_TE, max_active=max_active)


def gate_weights(weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Weight of each pair in each gate, shape (G, P); differentiable."""
    expert_P, row_P = plan.expert_and_row_P
    # One index per pair and no repetition: the backward of this gather adds nothing twice.
    return torch.index_select(weights_GTE.flatten(1), 1, row_P * plan.num_experts + expert_P)
