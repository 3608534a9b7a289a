"""Mixtures inside torch.func's transforms: several models as one, gradients row by row."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from _reference import DIM, ROUTERS, draw_inputs, make_mixture, router_of
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from moe_runtime import (
    CometRouter,
    ModuleExperts,
    MultiGateMixtureOfExperts,
    TopKRouter,
    hard_routing,
    pack_experts,
)
from moe_runtime._transforms import is_transformed

NUM_EXPERTS, NUM_MODELS, NUM_ROWS = 5, 3, 7
State = dict[str, Tensor]


def loss_of(call: Callable[..., tuple[Tensor, Tensor, Tensor]], *inputs: Tensor) -> Tensor:
    output, penalty, weights = call(*inputs)
    return output.square().mean() + penalty + weights.square().mean()


def modules_and_gates() -> MultiGateMixtureOfExperts:
    modules = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 3)) for _ in range(NUM_EXPERTS)]
    routers = [CometRouter(DIM, NUM_EXPERTS, k=2), TopKRouter(DIM, NUM_EXPERTS, k=2)]
    experts = ModuleExperts(modules, in_features=DIM, out_features=3)
    return MultiGateMixtureOfExperts(routers, experts, threshold=0.1)


@pytest.mark.parametrize("routing", [nullcontext, hard_routing])
@pytest.mark.parametrize("name", [*sorted(ROUTERS), "modules"])
def test_several_models_as_one_give_what_each_gives(
    name: str, routing: Callable[[nn.Module], AbstractContextManager[object]]
) -> None:
    models: list[MultiGateMixtureOfExperts] = []
    for _ in range(NUM_MODELS):
        models.append(modules_and_gates() if name == "modules" else make_mixture(name))
        router = router_of(models[-1])
        rows = [torch.randperm(NUM_EXPERTS) for _ in range(router.num_slots)]
        router.set_permutation(torch.stack(rows))
    drawn = [draw_inputs(name, NUM_ROWS) for _ in models]
    inputs = [torch.stack(each) for each in zip(*drawn, strict=True)]
    parameters, buffers = stack_module_state(models)

    def loss(trained: State, fixed: State, *own: Tensor) -> Tensor:
        return loss_of(lambda *some: functional_call(models[0], (trained, fixed), some), *own)

    with routing(models[0]):
        losses = vmap(loss)(parameters, buffers, *inputs)
    torch.autograd.backward(losses.sum())
    for index, model in enumerate(models):
        with routing(model):
            expected = loss_of(model, *drawn[index])
        torch.testing.assert_close(losses[index], expected)
        torch.autograd.backward(expected)
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[key].grad[index], parameter.grad)


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_gradients_row_by_row_are_those_of_each_row(name: str) -> None:
    mixture = make_mixture(name)
    inputs = draw_inputs(name, NUM_ROWS)
    parameters: State = {**dict(mixture.named_parameters())}

    def loss(trained: State, *row: Tensor) -> Tensor:
        return loss_of(
            lambda *some: functional_call(mixture, trained, some), *(each[None] for each in row)
        )

    by_row = vmap(grad(loss), in_dims=(None, *[0] * len(inputs)))(parameters, *inputs)
    for row in range(NUM_ROWS):
        mixture.zero_grad()
        torch.autograd.backward(loss_of(mixture, *(each[row : row + 1] for each in inputs)))
        for key, parameter in parameters.items():
            torch.testing.assert_close(by_row[key][row], parameter.grad)


@pytest.mark.parametrize("kernel", ["gathered", "loop", "sorted", "triton"])
def test_kernels_that_plan_are_refused(kernel: str) -> None:
    mixture = make_mixture("comet", kernel=kernel)
    with pytest.raises(ValueError, match=f"`kernel` must be 'auto' or 'dense' .* got '{kernel}'"):
        vmap(lambda x: mixture(x).output)(torch.randn(2, 3, DIM))


def test_a_mask_is_refused() -> None:
    mixture = make_mixture("comet")
    with pytest.raises(ValueError, match=r"`mask` must be None inside torch\.func's transforms"):
        vmap(lambda x, mask: mixture(x, mask=mask).output)(
            torch.randn(2, 3, DIM), torch.ones(2, 3, dtype=torch.bool)
        )


def test_what_runs_inside_is_explained() -> None:
    mixture = make_mixture("comet")
    router = router_of(mixture)
    assert isinstance(router, CometRouter)
    said = set()

    def listen(x: Tensor) -> Tensor:
        said.add(router.explain(x))
        return x

    vmap(listen)(torch.randn(2, 3, DIM))
    assert said == {"dense gate: inside a transform of torch.func"}


def test_a_compiler_is_no_transform() -> None:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(is_transformed())
        return x + 1

    torch.compile(look, backend="eager", fullgraph=True)(torch.ones(2))
    assert not any(seen)
    mixture = make_mixture("comet", kernel="dense")
    x, mask = torch.randn(4, DIM), torch.tensor([True, False, True, True])
    compiled = torch.compile(mixture, backend="eager")
    with torch.no_grad():  # PyTorch (2.13) warns of gradients where a mask breaks the graph
        torch.testing.assert_close(compiled(x, mask=mask).output, mixture(x, mask=mask).output)
    torch._dynamo.reset()
    several = torch.compile(vmap(lambda rows: mixture(rows).output), backend="eager")
    expected = torch.stack([mixture(rows).output for rows in (x, 2 * x)])
    torch.testing.assert_close(several(torch.stack([x, 2 * x])), expected)


def test_packed_experts_are_mapped_but_pass_no_gradient() -> None:
    mixture = make_mixture("top_k")
    x = torch.randn(2, 3, DIM)
    with torch.no_grad():
        expected = torch.stack([mixture(rows).output for rows in x])
        pack_experts(mixture)
        torch.testing.assert_close(vmap(lambda rows: mixture(rows).output)(x), expected)
    for given in (x, x.clone().requires_grad_()):
        with pytest.raises(RuntimeError, match="packed experts pass no gradient"):
            vmap(lambda rows: mixture(rows).output)(given)
