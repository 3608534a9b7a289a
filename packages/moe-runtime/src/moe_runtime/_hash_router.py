"""Hash: each id has its expert.

Axes: E experts.
"""

from collections.abc import Sequence
from typing import Self

import array_api_compat.torch as xp
import torch
from torch import Tensor

import moe_gates
from moe_runtime._checks import check_positive, check_tensor, has_values
from moe_runtime._router import GateOutput, Router


class HashRouter(Router):
    """One expert a row, which the table holds for its id; hard routing changes nothing.

    Ids outside the table are refused on the CPU where nothing is compiled or transformed by
    torch.func; elsewhere looking would wait for the device, or there are no values yet, and
    what they do is up to PyTorch.

    Parameters
    ----------
    num_ids
        Ids are integers in ``[0, num_ids)``.
    num_experts
        Number of experts, E.
    seed
        Seed of a table that is drawn at random, independently for each id.
    table
        Expert of each id, integers of shape (num_ids,), instead of a table that is drawn.

    References
    ----------
    Roller et al., NeurIPS 2021, arXiv:2106.04426.
    """

    table: Tensor

    def __init__(
        self, num_ids: int, num_experts: int, *, seed: int = 0, table: Tensor | None = None
    ) -> None:
        super().__init__(num_experts, k=1, num_slots=1)
        check_positive("num_ids", num_ids)
        self.num_ids = num_ids
        if table is None:
            table = moe_gates.hash_table(num_ids, num_experts=num_experts, seed=seed, xp=xp)
        else:
            _check_table(table, num_ids, num_experts)
        self.register_buffer("table", table.to(torch.int32, copy=True))

    @classmethod
    def from_counts(cls, counts: Sequence[float] | Tensor, num_experts: int) -> Self:
        """Give experts about equally many rows, from how often each id occurs.

        Parameters
        ----------
        counts
            How often each id occurs in the training data, shape (num_ids,): >= 0, in any unit.
        num_experts
            Number of experts, E.

        Examples
        --------
        >>> import moe_runtime
        >>> moe_runtime.HashRouter.from_counts([5, 1, 4, 2, 2], 2).table.tolist()
        [0, 1, 1, 1, 0]
        """
        table = moe_gates.balanced_hash_table(counts, num_experts=num_experts, xp=xp)
        return cls(len(table), num_experts, table=table)

    def check_shared_input(self, x: Tensor) -> None:  # noqa: ARG002 - refused, whatever it is
        """Refuse: features are no ids."""
        msg = "`router_input` is required for a HashRouter: integer ids."
        raise ValueError(msg)

    def gate(self, x: Tensor) -> GateOutput:
        """Return one-hot weights for ids of any shape."""
        if x.is_floating_point() or x.is_complex() or x.dtype is torch.bool:
            msg = f"`router_input` must hold integer ids for a HashRouter, got dtype {x.dtype}."
            raise ValueError(msg)
        self._check_ids(x)
        # index_select (torch 2.13) takes no narrower integers than int32.
        weights = moe_gates.hash_gate(
            x.long(), self.table, num_experts=self.num_experts, dtype=torch.float32, xp=xp
        )
        return GateOutput(weights[..., None, :])

    def _check_ids(self, ids: Tensor) -> None:
        if not has_values(ids) or not ids.numel():
            return
        low, high = map(int, ids.aminmax())
        if low < 0 or high >= self.num_ids:
            msg = f"`router_input` must hold ids in [0, {self.num_ids}), got {low}..{high}."
            raise ValueError(msg)


def _check_table(table: Tensor, num_ids: int, num_experts: int) -> None:
    check_tensor("table", table)
    if table.shape != (num_ids,) or table.is_floating_point() or table.dtype is torch.bool:
        msg = (
            f"`table` must hold integers of shape (num_ids={num_ids},), got {table.dtype} of "
            f"shape {tuple(table.shape)}."
        )
        raise ValueError(msg)
    low, high = map(int, table.aminmax())
    if low < 0 or high >= num_experts:
        msg = f"`table` must hold experts in [0, num_experts={num_experts}), got {low}..{high}."
        raise ValueError(msg)
