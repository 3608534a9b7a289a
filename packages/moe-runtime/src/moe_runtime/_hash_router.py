"""Hash: each id has its expert."""

import array_api_compat.torch as xp
import torch
from torch import Tensor

import moe_gates
from moe_runtime._checks import check_positive
from moe_runtime._router import Router


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
