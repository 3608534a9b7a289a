"""Mixture-of-experts layers: route, plan, run the selected experts, combine.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert) pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_dtype, check_finite, check_last_axis, check_tensor, check_type
from moe_runtime._experts import Experts
from moe_runtime._grouped import combine, gather_rows
from moe_runtime._plan import gate_weights, make_plan
from moe_runtime._router import Router, Routing

KERNELS = ("auto", "dense", "sorted")
# Above this share of active (row, expert) pairs, one batched product over all of them beats
# sorting: the sorted form reaches about 70 % of the batched one's arithmetic rate.
DENSE_SHARE = 0.7
# Operator that stands for one mixture while a model is exported; `moe_runtime.onnx` lowers it.
ONNX_OPERATOR = "moe_runtime::Mixture"


class MixtureOutput(NamedTuple):
    """What a mixture returns; a multi-gate one puts a gate axis G first."""

    output: Tensor  # (..., O) or (G, ..., O)
    penalty: Tensor  # scalar, to be added to the loss
    weights: Tensor  # (..., E) or (G, ..., E), exact zeros where an expert was not used


class MultiGateMixtureOfExperts(nn.Module):
    """One set of experts, and a gate for each task over it.

    Only the pairs of rows and experts that some gate selects are computed, each once.
    A row's answer does not depend on the other rows of its batch.

    Parameters
    ----------
    routers
        One router a task, over the same number of experts.
    experts
        The experts.
    kernel
        ``"sorted"`` computes the selected pairs, ``"dense"`` every pair, ``"auto"`` chooses
        dense where most pairs are selected anyway. The answer is the same up to rounding.

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
        self, routers: Sequence[Router], experts: Experts, *, kernel: str = "auto"
    ) -> None:
        super().__init__()
        check_type("routers", routers, (Sequence, nn.ModuleList), "a sequence of Routers")
        check_type("experts", experts, Experts, "an Experts")
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
        if kernel not in KERNELS:
            msg = f"`kernel` must be one of {list(KERNELS)}, got {kernel!r}."
            raise ValueError(msg)
        self.routers = nn.ModuleList(routers)
        self.experts = experts
        self.kernel = kernel

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

    def forward(self, x: Tensor, router_input: Tensor | None = None) -> MixtureOutput:
        """Mix the experts' outputs for each gate.

        Parameters
        ----------
        x
            Experts' input, shape (..., D).
        router_input
            Routers' input where it differs: features (..., R), or ids (...) for Hash.

        Returns
        -------
        MixtureOutput
            Output (G, ..., O), penalty, and weights (G, ..., E).
        """
        check_tensor("x", x)
        check_last_axis("x", x, self.experts.in_features)
        check_dtype("x", x, self.experts.dtype)
        if router_input is not None:
            check_finite("x", x)
        routings = self.route(x, router_input)
        weights = torch.stack([routing.weights for routing in routings])
        if weights.shape[1:-1] != x.shape[:-1]:
            msg = (
                f"`router_input` must have the leading shape of `x`, {tuple(x.shape[:-1])}, "
                f"got {tuple(weights.shape[1:-1])}."
            )
            raise ValueError(msg)
        weights_GTE = weights.flatten(1, -2) if x.ndim > 1 else weights[:, None]
        output_GTO = run_experts(self.experts, x.reshape(-1, x.shape[-1]), weights_GTE, self.kernel)
        penalty = torch.stack([routing.penalty for routing in routings]).sum()
        shape = (len(self.routers), *x.shape[:-1], self.experts.out_features)
        return MixtureOutput(output_GTO.reshape(shape), penalty, weights)

    def extra_repr(self) -> str:
        """Say what the submodules do not."""
        return f"kernel={self.kernel!r}"


class MixtureOfExperts(MultiGateMixtureOfExperts):
    """One set of experts and one gate over it: a drop-in feed-forward layer.

    Parameters
    ----------
    router
        The router.
    experts
        The experts.
    kernel
        As in `MultiGateMixtureOfExperts`.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> router = moe_runtime.TopKRouter(6, 8, k=2)
    >>> mixture = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(8, (6, 16, 4)))
    >>> mixture(torch.randn(3, 5, 6)).output.shape
    torch.Size([3, 5, 4])
    """

    def __init__(self, router: Router, experts: Experts, *, kernel: str = "auto") -> None:
        check_type("router", router, Router, "a Router")
        super().__init__([router], experts, kernel=kernel)

    def forward(self, x: Tensor, router_input: Tensor | None = None) -> MixtureOutput:
        """Mix the experts' outputs: output (..., O), penalty, and weights (..., E)."""
        output, penalty, weights = super().forward(x, router_input)
        return MixtureOutput(output[0], penalty, weights[0])


def run_experts(experts: Experts, x_TD: Tensor, weights_GTE: Tensor, kernel: str) -> Tensor:
    """Run the experts that have a weight and add up their outputs, shape (G, T, O)."""
    if torch.onnx.is_in_onnx_export():
        return _onnx_node(experts, x_TD, weights_GTE)
    if kernel == "dense":
        return _run_dense(experts, x_TD, weights_GTE)
    plan = make_plan(weights_GTE)
    num_all = plan.num_rows * experts.num_experts
    if kernel == "auto" and plan.num_pairs > DENSE_SHARE * num_all:
        return _run_dense(experts, x_TD, weights_GTE)
    y_PO = experts(gather_rows(x_TD, plan), plan.counts_E)
    weights_GP = gate_weights(weights_GTE, plan)
    dtype = torch.promote_types(y_PO.dtype, weights_GP.dtype)
    return combine(y_PO.to(dtype), weights_GP.to(dtype), plan).to(y_PO.dtype)


def _run_dense(experts: Experts, x_TD: Tensor, weights_GTE: Tensor) -> Tensor:
    y_ETO = experts.every(x_TD)
    dtype = torch.promote_types(y_ETO.dtype, weights_GTE.dtype)
    with torch.autocast(x_TD.device.type, enabled=False):
        output = torch.einsum("gte,eto->gto", weights_GTE.to(dtype), y_ETO.to(dtype))
    return output.to(y_ETO.dtype)


def _onnx_node(experts: Experts, x_TD: Tensor, weights_GTE: Tensor) -> Tensor:
    stacks = [stack for layer in experts.layers for stack in layer.parameters()]
    return torch.onnx.ops.symbolic(
        ONNX_OPERATOR,
        (x_TD, weights_GTE, *stacks),
        attrs={"activations": list(experts.activations)},
        dtype=x_TD.dtype,
        shape=(weights_GTE.shape[0], x_TD.shape[0], experts.out_features),
        version=1,
    )
