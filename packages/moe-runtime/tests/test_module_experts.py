"""Modules of one's own are experts like any others: sparse, trained, and in order."""

import pytest
import torch
from _reference import DIM, PLAIN_KERNELS, awake
from torch import Tensor, nn

from moe_runtime import Experts, MixtureOfExperts, ModuleExperts, TopKRouter

NUM_EXPERTS = 5
KERNEL = pytest.mark.parametrize("kernel", PLAIN_KERNELS)


def stacked() -> Experts:
    return Experts(NUM_EXPERTS, (DIM, 7, 4), activation="gelu")


def unstacked(experts: Experts) -> ModuleExperts:
    """Give the same experts as modules."""
    modules = []
    (up_w, up_b), (down_w, down_b) = (list(layer.parameters()) for layer in experts.layers)
    for expert in range(experts.num_experts):
        module = nn.Sequential(nn.Linear(DIM, 7), nn.GELU(), nn.Linear(7, 4))
        stacks = (up_w, up_b, down_w, down_b)
        for parameter, stack in zip(module.parameters(), stacks, strict=True):
            parameter.data = stack[expert].detach().clone()
        modules.append(module)
    return ModuleExperts(modules, in_features=DIM, out_features=4)


@KERNEL
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_equal_the_same_experts_stacked_with_every_gradient(kernel: str, num_rows: int) -> None:
    experts = stacked().double()
    router = awake(TopKRouter(DIM, NUM_EXPERTS, k=2)).double()
    x = torch.randn(num_rows, DIM, dtype=torch.float64, requires_grad=True)
    found = []
    for each in (experts, unstacked(experts)):
        mixture = MixtureOfExperts(router, each, kernel=kernel)
        mixture.zero_grad()
        output = mixture(x).output
        output.square().sum().backward()
        grads = [parameter.grad for parameter in each.parameters() if parameter.grad is not None]
        assert len(grads) == len(list(each.parameters()))
        found.append((output, torch.autograd.grad(mixture(x).output.sum(), x)[0], grads))
    (output, grad_x, stacks), (their_output, their_grad_x, grads) = found
    torch.testing.assert_close(output, their_output, rtol=0, atol=1e-13)
    torch.testing.assert_close(grad_x, their_grad_x, rtol=0, atol=1e-13)
    for index, stack in enumerate(stacks):
        torch.testing.assert_close(stack, torch.stack(grads[index::4]), rtol=0, atol=1e-12)


def test_an_expert_without_rows_is_not_run_in_inference() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = 0

        def forward(self, x: Tensor) -> Tensor:
            self.rows += len(x)
            return x

    modules = [Counting() for _ in range(3)]
    experts = ModuleExperts(modules, in_features=DIM, out_features=DIM)
    mixture = MixtureOfExperts(TopKRouter(DIM, 3, k=2), experts, kernel="sorted")
    with torch.no_grad():
        weights = mixture(torch.randn(20, DIM)).weights
    assert [module.rows for module in modules] == (weights != 0).sum(0).tolist()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_no_kernel_that_is_chosen_runs_rows_that_were_not_selected(
    num_rows: int, *, training: bool
) -> None:
    experts = unstacked(Experts(17, (DIM, 7, 4)))
    mixture = MixtureOfExperts(TopKRouter(DIM, 17, k=2), experts)
    rows = 0

    def count(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal rows
        rows += len(inputs[0])

    for expert in experts.experts:
        expert.register_forward_hook(count)
    with torch.set_grad_enabled(training):
        weights = mixture.train(training)(torch.randn(num_rows, DIM)).weights
    assert rows == (weights != 0).sum()


def test_parameters_of_every_expert_are_in_the_state() -> None:
    names = unstacked(stacked()).state_dict().keys()
    assert {name.split(".")[1] for name in names} == {str(index) for index in range(NUM_EXPERTS)}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ModuleExperts([], in_features=1, out_features=1), ValueError, "at least one"),
        (
            lambda: ModuleExperts([nn.ReLU(), 3], in_features=1, out_features=1),  # type: ignore[list-item]
            TypeError,
            r"`experts\[1\]` must be a torch.nn.Module, got int",
        ),
        (
            lambda: ModuleExperts([nn.ReLU()], in_features=0, out_features=1),
            ValueError,
            "`in_features` must be an integer >= 1, got 0",
        ),
    ],
    ids=["none", "type", "features"],
)
def test_what_cannot_be_experts_is_refused(make, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        make()


def test_a_module_of_another_size_is_named() -> None:
    experts = ModuleExperts([nn.Linear(6, 4), nn.Linear(6, 3)], in_features=6, out_features=4)
    with pytest.raises(ValueError, match=r"`experts\[1\]` must map \(2, 6\) to \(2, 4\), got \(2,"):
        experts.one(1, torch.randn(2, 6))
