"""What every router has in common: a gate, a permutation of the experts, and hard routing.

Axes: T rows, E experts, K slots.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple, Self

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

import moe_gates
from moe_runtime._checks import check_last_axis, check_positive, check_tensor, check_type
from moe_runtime._penalties import Decision, Penalty
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._transforms import is_transformed

FLOAT32_BITS = 32


class Routing(NamedTuple):
    """Which experts each row uses, and with which weight."""

    weights: Tensor  # (..., E), exact zeros where an expert is not used
    penalty: Tensor  # scalar, to be added to the loss
    slot_weights: Tensor  # (..., K, E) by position: before the permutation, not yet summed


class GateOutput(NamedTuple):
    """What a gate gives to each position, in float32 at least: before the permutation."""

    slot_weights: Tensor  # (..., K, E)
    # (..., K, E), or (K, E) where it is the same for every row; the softmax of scores if None.
    slot_probabilities: Tensor | None = None
    scores: Tensor | None = None  # (..., E) in nats, where the gate has one score a position


class Router(PretrainedModule, ABC):
    """A gate with its parameters, and the permutation that a search has found for it.

    The gate gives weights to *positions*, for each of its slots (the trees of COMET, the
    selectors of DSelect-k; other gates have one). Position i of slot k stands for expert
    ``permutation[k, i]``: the identity, until a search finds something better.

    Random numbers are drawn in training mode only, with torch's generator. ``forward``
    changes no state.

    Parameters
    ----------
    num_experts
        Number of experts, E.
    k
        Most experts a row, when hard.
    num_slots
        Number of slots, K.
    dim
        Features that the gate reads, D; None where it does not read features.
    penalties
        Added to the loss, besides what the router has built in.

    Attributes
    ----------
    hard : bool
        Round every decision and draw nothing, so that a row uses at most `k` experts; set
        it for a whole model with `hard_routing`. What it changes is said by each router.
    """

    permutation: Tensor
    # Whether a row uses at most `k` experts also where the router is not hard.
    always_at_most_k: ClassVar[bool] = True
    # Buffers that move in small steps: they stay float32 where parameters are bfloat16.
    float32_buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        num_experts: int,
        *,
        k: int,
        num_slots: int,
        dim: int | None = None,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        moe_gates.check_k(k, num_experts)
        if dim is not None:
            check_positive("dim", dim)
        check_type("penalties", penalties, Sequence, "a sequence of functions")
        for index, penalty in enumerate(penalties):
            name = f"penalties[{index}]"
            check_type(name, penalty, Callable, "a function of a Decision")  # type: ignore[arg-type]
        self.num_experts = num_experts
        self.k = k
        self.in_features = dim
        self.penalties = tuple(penalties)
        self.hard = False
        identity = torch.arange(num_experts).repeat(num_slots, 1)
        self.register_buffer("permutation", identity)

    @property
    def num_slots(self) -> int:
        """Number of slots, K: each has a permutation of its own."""
        return self.permutation.shape[0]

    @property
    def max_active(self) -> int:
        """Most experts that a row can use, as the router is now: `k`, or all of them."""
        return self.k if self.hard or self.always_at_most_k else self.num_experts

    @property
    def is_random(self) -> bool:
        """Whether a router that draws would draw now: in training, unless hard."""
        return self.training and not self.hard

    @abstractmethod
    def gate(self, x: Tensor) -> GateOutput:
        """Return what the gate gives to each position, for input of shape (..., D)."""

    def check_shared_input(self, x: Tensor) -> None:
        """Refuse to route on the experts' input where the gate reads something else."""
        if self.in_features is not None and x.shape[-1:] != (self.in_features,):
            msg = (
                f"`router_input` is required for a {type(self).__name__} over "
                f"{self.in_features} features: `x` has shape {tuple(x.shape)}."
            )
            raise ValueError(msg)

    def check_rows(self, x: Tensor) -> None:
        """Refuse what is no tensor, or has not the features that the gate reads."""
        check_tensor("x", x)
        if self.in_features is not None:
            check_last_axis("router_input", x, self.in_features)

    def forward(self, x: Tensor) -> Routing:
        """Route rows: weights (..., E) for input of shape (..., D)."""
        self.check_rows(x)
        # Leaving autocast takes longer than to look whether there is anything to leave.
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._route(x)
        return self._route(x)

    def _route(self, x: Tensor) -> Routing:
        gate = self.gate(x)
        permuted = self.permute(gate.slot_weights)
        weights = permuted.sum(-2) if permuted.shape[-2] > 1 else permuted[..., 0, :]
        return Routing(weights, self.penalty(gate, weights), gate.slot_weights)

    def permute(self, weights: Tensor) -> Tensor:
        """Move weights (..., K, E) from positions to experts; with one slot, any K."""
        if torch.compiler.is_exporting():
            # By comparison: torch.onnx (2.13) cannot export a sort.
            permutation = self.permutation if self.num_slots > 1 else self.permutation[0]
            return moe_gates.permute(weights, permutation, xp=xp)
        # The same numbers in a quarter of the time where rows are few.
        return weights.gather(-1, self.permutation.argsort(-1).expand_as(weights))

    def penalty(self, gate: GateOutput, weights: Tensor) -> Tensor:
        """Sum the penalties of what the gate gave, and the weights (..., E) by expert."""
        total = weights.new_zeros(())
        if not self.penalties:
            return total
        scores, probabilities = gate.scores, gate.slot_probabilities
        if scores is not None:
            scores = self.permute(scores[..., None, :])[..., 0, :]
        if probabilities is None:
            assert scores is not None
            probabilities = scores.softmax(-1)[..., None, :]
        else:
            probabilities = self.permute(probabilities)
        decision = Decision(weights, probabilities, scores)
        for penalty in self.penalties:
            total = total + penalty(decision)
        return total

    def with_all_parameters(self, weights: Tensor, module: nn.Module) -> Tensor:
        """Give parameters that these weights do not depend on a gradient of 0: each has one."""
        if not torch.is_grad_enabled():
            return weights
        # Of the parameters, not of the scores: those of one row must not reach another. Inside
        # vmap (PyTorch 2.13) a tensor does not say whether it has a gradient outside.
        taught = [each for each in module.parameters() if each.requires_grad or is_transformed()]
        return weights + sum((0 * each).sum() for each in taught) if taught else weights

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - nn.Module's own
        before = {name: getattr(self, name) for name in self.float32_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = getattr(self, name)
            if after is not None and torch.finfo(after.dtype).bits < FLOAT32_BITS:
                setattr(self, name, buffer.to(after.device, torch.float32))
        return self


def warn_if_constant(k: int, num_experts: int, remedy: str) -> None:
    """Warn, in the caller's caller, of a gate whose only weight of a row is always 1."""
    if k == 1 and num_experts > 1:
        msg = (
            f"with `k`=1 the weight of each row is 1, and no gradient of the loss reaches the "
            f"router: {remedy}."
        )
        warnings.warn(msg, stacklevel=3)


@contextmanager
def hard_routing(module: nn.Module) -> Iterator[None]:
    """Route at most `k` experts a row everywhere in `module`, within this block.

    Every split and bit is rounded, and nothing is drawn.

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
    check_type("module", module, nn.Module, "a torch.nn.Module")
    routers = [each for each in module.modules() if isinstance(each, Router)]
    before = [router.hard for router in routers]
    try:
        for router in routers:
            router.hard = True
        yield
    finally:
        for router, hard in zip(routers, before, strict=True):
            router.hard = hard
