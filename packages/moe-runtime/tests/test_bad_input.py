"""A broken contract is refused, with the argument, what is allowed, and what came."""

import re
from collections.abc import Callable

import pytest
import torch
from _reference import DIM, NUM_IDS, make_mixture

from moe_runtime import (
    CometRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    TopKRouter,
)


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
        "`activation` must be one of ['gelu', 'identity', 'relu', 'silu'], got 'tanh'.",
    ),
    (
        lambda: Experts(4, (DIM, 3), output_activation="softmax"),
        "`output_activation` must be one of ['gelu', 'identity', 'relu', 'silu'], got 'softmax'.",
    ),
    (
        lambda: MixtureOfExperts(TopKRouter(DIM, 5, k=2), experts()),
        "`routers` must route over the experts' num_experts=4, got one over 5.",
    ),
    (
        lambda: MixtureOfExperts(TopKRouter(DIM, 4, k=2), experts(), kernel="fast"),
        "`kernel` must be one of ['auto', 'dense', 'sorted'], got 'fast'.",
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
    with pytest.raises(ValueError, match="`router_input` must hold integer ids"):
        mixture(torch.zeros(3, DIM))


def test_router_features_may_have_a_width_of_their_own() -> None:
    mixture = MixtureOfExperts(CometRouter(2, 4, k=1), experts())
    assert mixture(torch.zeros(3, DIM), torch.zeros(3, 2)).output.shape == (3, 3)
