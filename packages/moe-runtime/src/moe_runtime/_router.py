"""What every router has in common: a gate, a permutation of the experts, and hard routing.

Axes: T rows, E experts, K slots.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_positive, check_tensor


class Routing(NamedTuple):
    """Which experts each row uses, and with which weight."""

    weights: Tensor  # (..., E), exact zeros where an expert is not used
    penalty: Tensor  # scalar, to be added to the loss
    slot_weights: Tensor  # (..., K, E) by position: before the permutation, not yet summed


class Router(nn.Module, ABC):
    """A gate with its parameters, and the permutation that a search has found for it.

    The gate gives weights to *positions*, for each of its slots (the trees of COMET, the
    selectors of DSelect-k; Top-k and Hash have one). Position i of slot k stands for expert
    ``permutation[k, i]``: the identity, until a search finds something better.

    Attributes
    ----------
    hard : bool
        Round every decision, so that a row uses at most `k` experts; set it for a whole
        model with `hard_routing`. Routers that always keep the bound ignore it.
    """

    permutation: Tensor
    # Features of a row that the gate reads; None where it does not read features.
    in_features: int | None = None

    def __init__(self, num_experts: int, *, k: int, num_slots: int) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        moe_gates.check_k(k, num_experts)
        self.num_experts = num_experts
        self.k = k
        self.hard = False
        identity = torch.arange(num_experts).repeat(num_slots, 1)
        self.register_buffer("permutation", identity)

    @property
    def num_slots(self) -> int:
        """Number of slots, K: each has a permutation of its own."""
        return self.permutation.shape[0]

    @abstractmethod
    def gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slot weights (..., K, E) by position, and the penalty."""

    def check_shared_input(self, x: Tensor) -> None:
        """Refuse to route on the experts' input where the gate reads something else."""
        if self.in_features is not None and x.shape[-1:] != (self.in_features,):
            msg = (
                f"`router_input` is required for a {type(self).__name__} over "
                f"{self.in_features} features: `x` has shape {tuple(x.shape)}."
            )
            raise ValueError(msg)

    def forward(self, x: Tensor) -> Routing:
        """Route rows: weights (..., E) for input of shape (..., D)."""
        check_tensor("x", x)
        with torch.autocast(x.device.type, enabled=False):
            slot_weights, penalty = self.gate(x)
            permuted = moe_gates.permute(slot_weights, self.permutation, xp=xp)
            return Routing(permuted.sum(-2), penalty, slot_weights)

    def set_permutation(self, permutation: Tensor) -> None:
        """Let position i of slot k stand for expert ``permutation[k, i]``."""
        check_tensor("permutation", permutation)
        expected = torch.arange(self.num_experts, device=permutation.device)
        if permutation.shape != self.permutation.shape or not torch.equal(
            permutation.sort(-1).values, expected.expand_as(permutation)
        ):
            msg = (
                f"`permutation` must have shape {tuple(self.permutation.shape)} and each row "
                f"must hold 0..{self.num_experts - 1} once, got shape "
                f"{tuple(permutation.shape)}: {permutation.tolist()}."
            )
            raise ValueError(msg)
        self.permutation.copy_(permutation)

    def extra_repr(self) -> str:
        """Say what the parameters' shapes do not."""
        return f"num_experts={self.num_experts}, k={self.k}, hard={self.hard}"


@contextmanager
def hard_routing(module: nn.Module) -> Iterator[None]:
    """Route at most `k` experts a row everywhere in `module`, within this block.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.CometRouter(6, 8, k=2, gamma=10.0)
    >>> x = torch.randn(5, 6)
    >>> with moe_runtime.hard_routing(router):
    ...     active = (router(x).weights != 0).sum(-1)
    >>> bool((active <= 2).all())
    True
    """
    routers = [each for each in module.modules() if isinstance(each, Router)]
    before = [router.hard for router in routers]
    try:
        for router in routers:
            router.hard = True
        yield
    finally:
        for router, hard in zip(routers, before, strict=True):
            router.hard = hard
