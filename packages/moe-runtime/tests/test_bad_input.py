"""A broken contract is refused, with the argument, what is allowed, and what came."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from _reference import DIM, NUM_IDS, make_mixture, router_of
from torch import nn

from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    Router,
    TopKRouter,
    hard_routing,
)
from moe_runtime._checks import check_finite


def experts(num_experts: int = 4) -> Experts:
    return Experts(num_experts, (DIM, 3))


BAD_LAYERS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: Experts(4, (DIM,)),
        "`widths` must name at least the input and the output, got (6,).",
    ),
    (lambda: Experts(4, (DIM, 0)), "`widths` must be an integer >= 1, got 0."),
    (lambda: Experts(0, (DIM, 3)), "`num_experts` must be an integer >= 1, got 0."),
    (
        lambda: Experts(4, (DIM, 3), activation="tanh"),
        "`activation` must be one of ['geglu', 'geglu_tanh', 'gelu', 'gelu_tanh', ",
    ),
    (
        lambda: Experts(4, (DIM, 3), output_activation="softmax"),
        "`output_activation` must be one of ['geglu', 'geglu_tanh', 'gelu', ",
    ),
    (
        lambda: MixtureOfExperts(TopKRouter(DIM, 5, k=2), experts()),
        "`routers` must route over the experts' num_experts=4, got one over 5.",
    ),
    (
        lambda: MixtureOfExperts(TopKRouter(DIM, 4, k=2), experts(), kernel="fast"),
        "`kernel` must be one of ['auto', 'dense', 'gathered', 'loop', 'numba', 'sorted', ",
    ),
    (
        lambda: MultiGateMixtureOfExperts([], experts()),
        "`routers` must hold at least one router, got none.",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD_LAYERS, ids=[case[1] for case in BAD_LAYERS])
def test_a_layer_that_cannot_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def top_k() -> TopKRouter:
    return TopKRouter(DIM, 4, k=2)


# As a caller without type checking may write it.
AnyNone: Any = None
LAYERS_OF_ANYTHING: Any = (Experts, MixtureOfExperts, MultiGateMixtureOfExperts, CometRouter)
AnyExperts, AnyMixture, AnyMultiGate, AnyComet = LAYERS_OF_ANYTHING

MISTYPED_LAYERS: list[tuple[Callable[[], object], str]] = [
    (lambda: AnyExperts(8, 20), "`widths` must be a sequence of integers, got int."),
    (lambda: AnyExperts(8, None), "`widths` must be a sequence of integers, got NoneType."),
    (lambda: AnyMixture(experts(), top_k()), "`router` must be a Router, got Experts."),
    (lambda: AnyMixture(nn.Linear(DIM, 4), experts()), "`router` must be a Router, got Linear."),
    (lambda: AnyMixture([top_k()], experts()), "`router` must be a Router, got list."),
    (
        lambda: AnyMixture(top_k(), nn.Linear(DIM, 3)),
        "`experts` must be an Experts or ModuleExperts, got Linear.",
    ),
    (
        lambda: AnyMultiGate(top_k(), experts()),
        "`routers` must be a sequence of Routers, got TopKRouter.",
    ),
    (
        lambda: AnyMultiGate(experts(), [top_k()]),
        "`routers` must be a sequence of Routers, got Experts.",
    ),
    (
        lambda: AnyMultiGate([top_k(), nn.Linear(DIM, 4)], experts()),
        "`routers[1]` must be a Router, got Linear.",
    ),
    (
        lambda: AnyComet(DIM, 4, k=2, entropy_weight="a"),
        "`entropy_weight` must be a number, got 'a'.",
    ),
    (
        lambda: AnyComet(DIM, 4, k=2, entropy_weight=True),
        "`entropy_weight` must be a number, got True.",
    ),
    (
        lambda: DSelectKRouter(DIM, 4, k=2, unreachable_weight=AnyNone),
        "`unreachable_weight` must be a number, got None.",
    ),
]


@pytest.mark.parametrize(
    ("build", "message"), MISTYPED_LAYERS, ids=[case[1] for case in MISTYPED_LAYERS]
)
def test_a_layer_of_other_parts_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        build()


def test_routers_may_come_in_a_module_list() -> None:
    routers: Any = nn.ModuleList([top_k(), top_k()])
    assert len(MultiGateMixtureOfExperts(routers, experts()).routers) == 2


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.zeros((3, DIM)), "ndarray"), ([[0.0] * DIM], "list"), (None, "NoneType")],
    ids=["array", "list", "none"],
)
def test_an_input_that_is_no_tensor_is_refused(value: Any, kind: str) -> None:
    mixture = make_mixture("comet")
    for take in (mixture, mixture.route, router_of(mixture)):
        with pytest.raises(TypeError, match=f"`x` must be a torch.Tensor, got {kind}."):
            take(value)


@pytest.mark.parametrize("name", ["hash", "comet"])
def test_a_router_input_that_is_no_tensor_is_refused(name: str) -> None:
    message = "`router_input` must be a torch.Tensor, got list."
    with pytest.raises(TypeError, match=re.escape(message)):
        make_mixture(name)(torch.zeros(3, DIM), [0, 1, 2])


@pytest.mark.parametrize("shape", [(3, DIM + 1), (DIM + 1,), ()], ids=str)
def test_an_input_of_another_width_is_refused(shape: tuple[int, ...]) -> None:
    message = f"`x` must have shape (..., 6), got {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("comet")(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_input_is_refused_with_its_place(value: float) -> None:
    x = torch.zeros(3, DIM)
    x[1, 4] = value
    x[2, 0] = float("nan")
    message = (
        f"`x` must be finite, got 2 non-finite of 18 values, the first at index (1, 4): {value}."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("comet")(x)
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("hash")(x, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=re.escape(message.replace("`x`", "`router_input`"))):
        make_mixture("comet")(torch.zeros(3, DIM), x)


def test_finite_values_whose_sum_is_not_are_fine() -> None:
    check_finite("x", torch.full((3,), 3e38))


@pytest.mark.parametrize("kernel", ["sorted", "dense"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64], ids=str)
def test_an_input_of_another_dtype_is_refused(kernel: str, dtype: torch.dtype) -> None:
    message = f"`x` must have the parameters' dtype torch.float32, got {dtype}."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("comet", kernel=kernel)(torch.zeros(3, DIM, dtype=dtype))


def test_autocast_takes_floating_inputs_only() -> None:
    message = "`x` must have the parameters' dtype torch.float32, got torch.int64."
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        make_mixture("comet")(torch.zeros(3, DIM, dtype=torch.int64))


@pytest.mark.parametrize("leading", [(), (4,), (3, 1)], ids=str)
def test_ids_of_another_leading_shape_are_refused(leading: tuple[int, ...]) -> None:
    message = f"`router_input` must have the leading shape of `x`, (3,), got {leading}."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("hash")(torch.zeros(3, DIM), torch.zeros(leading, dtype=torch.int64))


def test_features_of_another_leading_shape_are_refused() -> None:
    message = "`router_input` must have the leading shape of `x`, (3,), got (2,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_mixture("comet")(torch.zeros(3, DIM), torch.zeros(2, DIM))


def test_a_hash_router_without_ids_says_so() -> None:
    mixture = MixtureOfExperts(HashRouter(NUM_IDS, 4), experts())
    message = "`router_input` is required for a HashRouter: integer ids."
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(torch.zeros(3, DIM))
    with pytest.raises(ValueError, match="`router_input` must hold integer ids"):
        mixture(torch.zeros(3, DIM), torch.zeros(3, DIM))


@pytest.mark.parametrize("router", [TopKRouter, CometRouter, DSelectKRouter])
def test_a_router_of_another_width_needs_its_own_input(router: Callable[..., Router]) -> None:
    mixture = MixtureOfExperts(router(2, 4, k=2), experts())
    message = "over 2 features: `x` has shape (3, 6)."
    with pytest.raises(ValueError, match="`router_input` is required.*" + re.escape(message)):
        mixture(torch.zeros(3, DIM))
    message = "`router_input` must have shape (..., 2), got (3, 6)."
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(torch.zeros(3, DIM), torch.zeros(3, DIM))


def test_router_features_may_have_a_width_of_their_own() -> None:
    mixture = MixtureOfExperts(CometRouter(2, 4, k=1), experts())
    assert mixture(torch.zeros(3, DIM), torch.zeros(3, 2)).output.shape == (3, 3)


def test_a_kernel_that_is_set_later_is_checked_too() -> None:
    mixture = make_mixture("comet")
    mixture.kernel = "fast"
    with pytest.raises(ValueError, match=r"`kernel` must be one of .*, got 'fast'"):
        mixture(torch.zeros(3, DIM))


def test_hard_routing_is_of_a_module() -> None:
    message = "`module` must be a torch.nn.Module, got int"
    with pytest.raises(TypeError, match=message), hard_routing(5):  # type: ignore[arg-type]
        pass
