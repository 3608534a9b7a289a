"""A mixture on Triton's kernels gives what it gives on the others."""

import pytest
import torch
from _reference import DIM, make_mixture, router_of
from _triton_reference import DEVICE, require_triton

from moe_runtime import (
    Experts,
    MixtureOfExperts,
    ModuleExperts,
    MultiGateMixtureOfExperts,
    TopKRouter,
    hard_routing,
)

require_triton()


@pytest.mark.parametrize("name", ["comet", "top_k"])
@pytest.mark.parametrize("hard", [False, True])
def test_answers_and_gradients_are_those_of_the_sorted_kernel(name: str, *, hard: bool) -> None:
    mixture = make_mixture(name, kernel="sorted").to(DEVICE)
    router_of(mixture).hard = hard
    x = torch.randn(9, DIM, device=DEVICE, requires_grad=True)
    found = []
    for kernel in ("sorted", "triton"):
        mixture.kernel = kernel
        output, penalty, _ = mixture(x)
        loss = output.square().sum() + penalty
        grads = torch.autograd.grad(loss, [x, *mixture.parameters()], materialize_grads=True)
        found.append([output, *grads])
    for ours, theirs in zip(*found, strict=True):
        # float32 sums of a hundred terms of size 1.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_several_gates_share_their_bound() -> None:
    routers = [TopKRouter(DIM, 5, k=2), TopKRouter(DIM, 5, k=4)]
    mixture = MultiGateMixtureOfExperts(routers, Experts(5, (DIM, 7, 4))).to(DEVICE)
    assert mixture.max_active == 5
    x = torch.randn(9, DIM, device=DEVICE)
    wanted = mixture(x).output
    mixture.kernel = "triton"
    torch.testing.assert_close(mixture(x).output, wanted, rtol=0, atol=1e-5)


def test_autocast_computes_in_its_dtype() -> None:
    mixture = make_mixture("comet", kernel="triton").to(DEVICE)
    x = torch.randn(9, DIM, device=DEVICE)
    plain = mixture(x).output
    with torch.autocast(DEVICE, torch.bfloat16), hard_routing(mixture):
        output = mixture(x).output
    with hard_routing(mixture):
        plain = mixture(x).output
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), plain, rtol=0, atol=0.03)


def test_what_it_cannot_run_is_refused() -> None:
    router = TopKRouter(DIM, 3, k=2)
    modules = [torch.nn.Linear(DIM, 4) for _ in range(3)]
    for experts in (
        ModuleExperts(modules, in_features=DIM, out_features=4),
        Experts(3, (DIM, 7, 4), dropout=0.5),
    ):
        mixture = MixtureOfExperts(router, experts, kernel="triton").to(DEVICE)
        with pytest.raises(ValueError, match="`kernel`='triton' runs `Experts` only"):
            mixture(torch.randn(2, DIM, device=DEVICE))
