"""Mixture-of-experts layers: route, plan, run the selected experts, combine.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

import operator
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_runtime._checks import (
    check_dtype,
    check_finite,
    check_last_axis,
    check_non_negative,
    check_tensor,
    check_type,
)
from moe_runtime._choice import Explanation, choose, explain
from moe_runtime._expert_set import ExpertSet
from moe_runtime._kernels import KERNELS, run_dense
from moe_runtime._onnx_node import is_exporting, onnx_node
from moe_runtime._plan import make_plan
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._router import Router, Routing
from moe_runtime._transforms import is_transformed
from moe_runtime._untraced import untraced


class MixtureOutput(NamedTuple):
    """What a mixture returns; a multi-gate one puts a gate axis G first."""

    output: Tensor  # (..., O) or (G, ..., O)
    penalty: Tensor  # scalar, to be added to the loss
    weights: Tensor  # (..., E) or (G, ..., E), exact zeros where an expert was not used


class MultiGateMixtureOfExperts(PretrainedModule):
    """One set of experts, and a gate for each task over it.

    Only the pairs of rows and experts that some gate selects are computed, each once.
    A row's answer does not depend on the other rows of its batch.

    Parameters
    ----------
    routers
        One router a task, over the same number of experts.
    experts
        The experts: `Experts`, or modules of one's own as `ModuleExperts`.
    kernel
        How experts are run; the answer is the same up to rounding. ``"auto"`` takes what should
        be fastest, and `explain` says what that is. ``"sorted"`` copies the rows of each expert
        to a block, ``"gathered"`` goes from pair to pair, ``"dense"`` computes every pair, and
        ``"loop"`` is the plain definition to compare with. ``"numba"`` (extra ``numba``; CPU,
        float32 or float64, `Experts`) runs compiled loops, which few rows an expert are best
        served by; ``"auto"`` takes it where it is installed. ``"triton"`` (extra ``gpu``) is for
        NVIDIA GPUs and has not been run on one yet, so that ``"auto"`` does not take it. Inside the
        transforms of `torch.func` there is ``"dense"`` only, which ``"auto"`` takes there.
    threshold
        Weights whose size is at most this count as 0, and are 0 in the answer. They are not made
        up for: a row's other weights stay as they are.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> experts = moe_runtime.Experts(8, (6, 16, 4))
    >>> routers = [moe_runtime.CometRouter(6, 8, k=2) for _ in range(2)]
    >>> mixture = moe_runtime.MultiGateMixtureOfExperts(routers, experts)
    >>> mixture(torch.randn(5, 6)).output.shape
    torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        routers: Sequence[Router],
        experts: ExpertSet,
        *,
        kernel: str = "auto",
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        check_type("routers", routers, (Sequence, nn.ModuleList), "a sequence of Routers")
        check_type("experts", experts, ExpertSet, "an Experts or ModuleExperts")
        if not routers:
            msg = "`routers` must hold at least one router, got none."
            raise ValueError(msg)
        for gate, router in enumerate(routers):
            check_type(f"routers[{gate}]", router, Router, "a Router")
            if router.num_experts != experts.num_experts:
                msg = (
                    f"`routers` must route over the experts' num_experts={experts.num_experts}, "
                    f"got one over {router.num_experts}."
                )
                raise ValueError(msg)
        check_kernel(kernel)
        check_non_negative("threshold", threshold)
        self.routers = nn.ModuleList(routers)
        self.experts = experts
        self.kernel = kernel
        self.threshold = threshold

    @property
    def max_active(self) -> int:
        """Most experts that a row can use in all gates together, as the routers are now."""
        bounds = [router.max_active for router in self.routers if isinstance(router, Router)]
        return min(sum(bounds), self.experts.num_experts)

    def route(self, x: Tensor, router_input: Tensor | None = None) -> list[Routing]:
        """Route rows through every gate, without running an expert."""
        given = self.checked_router_input(x, router_input)
        return [router(given) for router in self.routers]

    def checked_router_input(self, x: Tensor, router_input: Tensor | None) -> Tensor:
        """Return what the routers read: `router_input`, or `x` if every router can read it."""
        name, given = ("x", x) if router_input is None else ("router_input", router_input)
        check_tensor(name, given)
        if given.is_floating_point():
            check_finite(name, given)
        if router_input is None:
            for router in self.routers:
                assert isinstance(router, Router)
                router.check_shared_input(x)
        return given

    def forward(
        self, x: Tensor, router_input: Tensor | None = None, mask: Tensor | None = None
    ) -> MixtureOutput:
        """Mix the experts' outputs for each gate.

        Parameters
        ----------
        x
            Experts' input, shape (..., D).
        router_input
            Routers' input where it differs: features (..., R), or ids (...) for Hash.
        mask
            False for rows that are padding, shape (...), bool. They are taken out first: they
            cost nothing, count nowhere (the penalty neither), and are 0 in the answer.

        Returns
        -------
        MixtureOutput
            Output (G, ..., O), penalty, and weights (G, ..., E).
        """
        experts = self.experts
        check_tensor("x", x)
        check_last_axis("x", x, experts.in_features)
        check_dtype("x", x, experts.dtype)
        if mask is not None and is_transformed():
            msg = "`mask` must be None inside torch.func's transforms: what it leaves is data."
            raise ValueError(msg)
        # Taking rows out is data-dependent, which an exported graph leaves to its mixtures.
        if mask is not None and not is_exporting():
            masked = _run_masked_untraced if torch.compiler.is_compiling() else _run_masked
            return masked(self, x, router_input, mask)
        weights, penalty = self._weights(x, router_input)
        if mask is not None:
            weights = torch.where(mask[..., None], weights, 0)
            # It would count the padding. An export that gives it out is refused, as not a number.
            penalty = torch.full_like(penalty, torch.nan)
        x_TD = x.reshape(-1, x.shape[-1])
        weights_GTE = weights.reshape(weights.shape[0], -1, experts.num_experts)
        if is_exporting():
            bounds = [router.max_active for router in self.routers if isinstance(router, Router)]
            output_GTO = onnx_node(experts, x_TD, weights_GTE, bounds)
        else:
            output_GTO = run_experts(experts, x_TD, weights_GTE, self.kernel, self.max_active)
        shape = (weights.shape[0], *x.shape[:-1], experts.out_features)
        return MixtureOutput(output_GTO.reshape(shape), penalty, weights)

    @torch.no_grad()
    def explain(
        self, x: Tensor, router_input: Tensor | None = None, mask: Tensor | None = None
    ) -> Explanation:
        """Say which kernel would run for this input, and why, without running an expert.

        Takes what ``forward`` takes. The choice is that of a step that takes gradients in training
        mode, and of one that takes none in evaluation mode.
        """
        if mask is not None:
            x, router_input = _take(mask, x, router_input)
        weights, _ = self._weights(x, router_input)
        plan = make_plan(weights.reshape(len(self.routers), -1, self.experts.num_experts))
        return explain(self.experts, plan, x.device, self.kernel, training=self.training)

    def _weights(self, x: Tensor, router_input: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights (G, ..., E) of all gates without those that the threshold drops, and penalty."""
        if router_input is not None:
            check_finite("x", x)
        routings = self.route(x, router_input)
        weights = _stack([routing.weights for routing in routings])
        if weights.shape[1:-1] != x.shape[:-1]:
            msg = (
                f"`router_input` must have the leading shape of `x`, {tuple(x.shape[:-1])}, "
                f"got {tuple(weights.shape[1:-1])}."
            )
            raise ValueError(msg)
        penalty = reduce(operator.add, [routing.penalty for routing in routings])
        return self.above_threshold(weights), penalty

    def above_threshold(self, weights: Tensor) -> Tensor:
        """Return weights with 0 for those that the threshold drops."""
        if not self.threshold:
            return weights
        return torch.where(weights.abs() > self.threshold, weights, 0)

    def extra_repr(self) -> str:
        """Say what the submodules do not."""
        return f"kernel={self.kernel!r}, threshold={self.threshold}"


class MixtureOfExperts(MultiGateMixtureOfExperts):
    """One set of experts and one gate over it: a drop-in feed-forward layer.

    Parameters
    ----------
    router
        The router.
    experts
        The experts.
    kernel, threshold
        As in `MultiGateMixtureOfExperts`.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 8, k=2)
    >>> mixture = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(8, (6, 16, 4)))
    >>> mixture(torch.randn(3, 5, 6)).output.shape
    torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        router: Router,
        experts: ExpertSet,
        *,
        kernel: str = "auto",
        threshold: float = 0.0,
    ) -> None:
        check_type("router", router, Router, "a Router")
        super().__init__([router], experts, kernel=kernel, threshold=threshold)

    def forward(
        self, x: Tensor, router_input: Tensor | None = None, mask: Tensor | None = None
    ) -> MixtureOutput:
        """Mix the experts' outputs: output (..., O), penalty, and weights (..., E)."""
        output, penalty, weights = super().forward(x, router_input, mask)
        return MixtureOutput(output[0], penalty, weights[0])


def check_kernel(kernel: str) -> None:
    """Refuse a kernel that does not exist."""
    names = ["auto", *KERNELS]
    if kernel not in names:
        msg = f"`kernel` must be one of {names}, got {kernel!r}."
        raise ValueError(msg)


def _take(mask: Tensor, x: Tensor, router_input: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows that are not padding, (T, D), and what their routers read."""
    check_tensor("mask", mask)
    if mask.dtype is not torch.bool or mask.shape != x.shape[:-1]:
        msg = (
            f"`mask` must be bool with the leading shape of `x`, {tuple(x.shape[:-1])}, "
            f"got {mask.dtype} with {tuple(mask.shape)}."
        )
        raise ValueError(msg)
    if router_input is None:
        return x[mask], None
    check_tensor("router_input", router_input)
    if router_input.shape[: mask.ndim] != mask.shape:
        msg = (
            f"`router_input` must have the leading shape of `x`, {tuple(x.shape[:-1])}, "
            f"got shape {tuple(router_input.shape)}."
        )
        raise ValueError(msg)
    return x[mask], router_input[mask]


def _put_back(mask: Tensor, rows_GTO: Tensor) -> Tensor:
    """Rows where they were, and zeros for the padding: (G, T, O) to (G, ..., O)."""
    whole = rows_GTO.new_zeros(rows_GTO.shape[0], *mask.shape, rows_GTO.shape[-1])
    whole[:, mask] = rows_GTO
    return whole


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack along a new first axis; a single tensor is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _run_masked(
    mixture: MultiGateMixtureOfExperts, x: Tensor, router_input: Tensor | None, mask: Tensor
) -> MixtureOutput:
    """Run the rows that are no padding."""
    kept = MultiGateMixtureOfExperts.forward(mixture, *_take(mask, x, router_input))
    return MixtureOutput(_put_back(mask, kept.output), kept.penalty, _put_back(mask, kept.weights))


# As many rows as the mask has: a compiler would break the graph several times in there.
_run_masked_untraced = untraced(_run_masked)


def run_experts(
    experts: ExpertSet,
    x_TD: Tensor,
    weights_GTE: Tensor,
    kernel: str,
    max_active: int | None = None,
) -> Tensor:
    """Run the experts that have a weight and add up their outputs, shape (G, T, O)."""
    if kernel == "dense":
        return run_dense(experts, x_TD, weights_GTE)
    if torch.compiler.is_compiling():
        untraced: Tensor = _run_untraced(experts, x_TD, weights_GTE, kernel, max_active)
        return untraced
    if is_transformed():
        return _run_transformed(experts, x_TD, weights_GTE, kernel)
    return _run_planned(experts, x_TD, weights_GTE, kernel, max_active)


def _run_planned(
    experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, kernel: str, max_active: int | None
) -> Tensor:
    plan = make_plan(weights_GTE, max_active=max_active)
    if kernel == "auto":
        kernel = choose(experts, plan, x_TD.device, training=torch.is_grad_enabled())
        if kernel == "dense" and weights_GTE.requires_grad:
            weights_GTE = _without_gradient_at_zero(weights_GTE)
    else:
        check_kernel(kernel)  # which may have been set after the mixture was made
    return KERNELS[kernel](experts, x_TD, weights_GTE, plan)


def _run_transformed(experts: ExpertSet, x_TD: Tensor, weights_GTE: Tensor, kernel: str) -> Tensor:
    """Run every expert on every row: how many pairs there are is no shape that vmap could map."""
    if kernel != "auto":
        msg = f"`kernel` must be 'auto' or 'dense' inside torch.func's transforms, got {kernel!r}."
        raise ValueError(msg)
    return run_dense(experts, x_TD, _without_gradient_at_zero(weights_GTE))


def _without_gradient_at_zero(weights_GTE: Tensor) -> Tensor:
    """Give a weight of 0 no gradient, as the kernels that plan do.

    Where a gate would pass one on, as straight-through ones do, what is learned must not depend
    on what is fastest.
    """
    return weights_GTE * (weights_GTE != 0)


# The number of pairs is data: a compiler would break the graph many times in there.
_run_untraced = untraced(_run_planned)
