"""Which (row, expert) pairs are computed, and in which order.

Axes: T rows, E experts, G gates, P (row, expert) pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """The (row, expert) pairs with a non-zero weight, sorted by expert and then by row."""

    row_P: Tensor  # int64, row of each pair
    expert_P: Tensor  # int64, expert of each pair
    counts_E: list[int]  # pairs of each expert
    by_row_P: Tensor  # int64, the pairs again, sorted by row and then by expert
    row_start_T: Tensor  # int64, where each row begins in `by_row_P`

    @property
    def num_pairs(self) -> int:
        """Number of (row, expert) pairs: the experts' whole work."""
        return self.row_P.shape[0]

    @property
    def num_rows(self) -> int:
        """Number of rows, those without any expert included."""
        return self.row_start_T.shape[0]


def make_plan(weights_GTE: Tensor) -> Plan:
    """List the pairs that at least one gate gives a non-zero weight.

    A pair that several gates select is listed, and so computed, once. Rows without
    experts, experts without rows and T = 0 are all fine.
    """
    mask_TE = (weights_GTE != 0).any(0)
    mask_ET = mask_TE.T
    expert_P, row_P = mask_ET.nonzero(as_tuple=True)
    # A running count along the sorted order is each pair's position in it; reading it
    # row by row sorts the pairs by row without a sort.
    position_ET = mask_ET.reshape(-1).cumsum(0).view(mask_ET.shape) - 1
    per_row_T = mask_TE.sum(1)
    return Plan(
        row_P=row_P,
        expert_P=expert_P,
        counts_E=mask_TE.sum(0).tolist(),
        by_row_P=position_ET.T[mask_TE],
        row_start_T=per_row_T.cumsum(0) - per_row_T,
    )


def gate_weights(weights_GTE: Tensor, plan: Plan) -> Tensor:
    """Weight of each pair in each gate, shape (G, P); differentiable."""
    num_gates, num_rows, num_experts = weights_GTE.shape
    flat = weights_GTE.reshape(num_gates, num_rows * num_experts)
    # One index per pair and no repetition: the backward of this gather adds nothing twice.
    return torch.index_select(flat, 1, plan.row_P * num_experts + plan.expert_P)
