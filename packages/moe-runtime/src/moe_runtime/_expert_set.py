"""What every kernel asks of experts, whatever they are made of.

Axes: T rows, D input features, O output features, E experts, P (row, expert) pairs,
R rows of one expert.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from moe_runtime._pretrained import PretrainedModule


class ExpertSet(PretrainedModule, ABC):
    """Experts that all map D features to O features.

    Attributes
    ----------
    num_experts, in_features, out_features : int
        E, D and O.
    layer_sizes : list of (int, int)
        Inputs and outputs of each linear map of an expert: what a cost model counts with.
    """

    num_experts: int
    in_features: int
    out_features: int
    layer_sizes: list[tuple[int, int]]

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the input, wherever autocast does not choose."""

    @abstractmethod
    def forward(self, x_PD: Tensor, counts_E: list[int]) -> Tensor:
        """Run the pairs of a plan, sorted by expert: (P, D) to (P, O)."""

    @abstractmethod
    def one(self, expert: int, x_TD: Tensor) -> Tensor:
        """Run one expert on every row: (T, D) to (T, O)."""

    def several(self, blocks: Iterable[tuple[int, Tensor]]) -> list[Tensor]:
        """Run experts, each on rows of its own: (R, D) to (R, O) a block."""
        return [self.one(expert, x_RD) for expert, x_RD in blocks]

    def every(self, x_TD: Tensor) -> Tensor:
        """Run every expert on every row: (T, D) to (E, T, O)."""
        return torch.stack([self.one(expert, x_TD) for expert in range(self.num_experts)])
