"""A mixture is its router's weights times its experts' outputs, for every shape and dtype."""

import copy

import pytest
import torch
from _reference import (
    CPU_KERNELS,
    DIM,
    PLAIN_KERNELS,
    ROUTERS,
    TRAINED,
    awake,
    draw_inputs,
    experts_of,
    make_mixture,
    reference_mixture,
    router_of,
    stacks_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_runtime import Experts, MixtureOfExperts, MultiGateMixtureOfExperts, TopKRouter

KERNEL = pytest.mark.parametrize("kernel", CPU_KERNELS)
PLAIN_KERNEL = pytest.mark.parametrize("kernel", PLAIN_KERNELS)
NAME = pytest.mark.parametrize("name", sorted(ROUTERS))


def expected_output(mixture: MixtureOfExperts, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
    stacks = [stack.detach().double() for stack in stacks_of(experts_of(mixture))]
    weights_GTE = weights_TE.detach().double()[None]
    return reference_mixture(x_TD.double(), weights_GTE, stacks, experts_of(mixture).activations)[0]


@NAME
@KERNEL
def test_equals_the_oracle_with_the_routers_weights(name: str, kernel: str) -> None:
    mixture = make_mixture(name, kernel=kernel)
    inputs = draw_inputs(name, 50)
    output, _, weights = mixture(*inputs)
    # float32 sums of 30 terms.
    wanted = expected_output(mixture, inputs[0], weights)
    torch.testing.assert_close(output.double(), wanted, rtol=0, atol=2e-6)


@NAME
@KERNEL
@pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
def test_leading_axes_are_only_a_shape(name: str, kernel: str, leading: tuple[int, ...]) -> None:
    mixture = make_mixture(name, kernel=kernel)
    inputs = draw_inputs(name, *leading)
    output, penalty, weights = mixture(*inputs)
    assert output.shape == (*leading, 4)
    assert weights.shape == (*leading, 5)
    assert penalty.shape == ()
    assert torch.isfinite(penalty)
    # An empty leading shape is one row; ids lose all their axes, features all but one.
    flat = [each.reshape(-1, *each.shape[len(leading) :]) for each in inputs]
    again, flat_penalty, _ = mixture(*flat)
    # Products of another shape may add in another order.
    torch.testing.assert_close(output.reshape(-1, 4), again, rtol=0, atol=1e-6)
    torch.testing.assert_close(penalty, flat_penalty)


@KERNEL
def test_a_non_contiguous_input_gives_the_same(kernel: str) -> None:
    mixture = make_mixture("comet", kernel=kernel)
    x = torch.randn(2, DIM, 9).mT
    torch.testing.assert_close(mixture(x).output, mixture(x.contiguous()).output)


@given(
    name=st.sampled_from(sorted(ROUTERS)),
    kernel=st.sampled_from(["auto", *CPU_KERNELS]),
    num_rows=st.integers(1, 30),
    data=st.data(),
)
def test_a_rows_answer_does_not_depend_on_its_batch(
    name: str, kernel: str, num_rows: int, data: st.DataObject
) -> None:
    mixture = make_mixture(name, kernel=kernel)
    inputs = draw_inputs(name, num_rows)
    row = data.draw(st.integers(0, num_rows - 1))
    together, alone = mixture(*inputs), mixture(*(each[row : row + 1] for each in inputs))
    torch.testing.assert_close(together.output[row : row + 1], alone.output, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.weights[row : row + 1], alone.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("num_experts", [5, 8])
def test_the_sparse_gradient_is_the_dense_one_for_every_parameter(
    name: str, num_experts: int
) -> None:
    # A weight that is exactly 0 has a derivative of exactly 0 in every gate, so that
    # leaving out its expert loses no gradient of the router.
    mixture = make_mixture(name, num_experts).double()
    x = torch.randn(64, DIM, dtype=torch.float64)
    found = []
    for kernel in ("sorted", "dense"):
        mixture.kernel = kernel
        mixture.zero_grad()
        output, penalty, weights = mixture(x)
        assert (weights == 0).any()
        (output.square().mean() + penalty).backward()
        found.append([parameter.grad for parameter in mixture.parameters()])
    for sparse, dense in zip(*found, strict=True):
        assert sparse is not None
        # Of terms of size 1 in float64.
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-13)


@KERNEL
@pytest.mark.parametrize("num_rows", [0, 1, 9])
@pytest.mark.parametrize("name", ["comet", "dselect_k"])
@pytest.mark.parametrize("hard", [False, True])
def test_every_parameter_gets_a_gradient_in_every_step(
    kernel: str, num_rows: int, name: str, *, hard: bool
) -> None:
    mixture = make_mixture(name, 17, kernel=kernel)
    router_of(mixture).hard = hard
    output, penalty, _ = mixture(torch.randn(num_rows, DIM))
    (output.sum() + penalty).backward()
    for parameter in mixture.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


@PLAIN_KERNEL
def test_autocast_keeps_routing_in_float32_and_the_answer_near(kernel: str) -> None:
    mixture = make_mixture("comet", kernel=kernel)
    x = torch.randn(50, DIM)
    plain = mixture(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixture(x)
        # The layer before hands over bfloat16.
        from_half = mixture(x.bfloat16())
    assert mixed.output.dtype == from_half.output.dtype == torch.bfloat16
    assert mixed.weights.dtype == from_half.weights.dtype == torch.float32
    assert torch.equal(mixed.weights, plain.weights)
    # Two products of numbers with 8 bits, on outputs of size 1.
    torch.testing.assert_close(mixed.output.float(), plain.output, rtol=0, atol=0.03)
    mixed.output.float().square().sum().backward()
    sparse = [parameter.grad for parameter in mixture.experts.parameters()]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in sparse)


@PLAIN_KERNEL
@pytest.mark.parametrize("num_rows", [1, 4, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_computes_a_large_batch_as_a_small_one(
    kernel: str, num_rows: int, dtype: torch.dtype
) -> None:
    # Large enough for each of the libraries that products may be sent to.
    experts = Experts(4, (256, 256, 256), activation="gelu")
    mixture = MixtureOfExperts(TopKRouter(256, 4, k=2), experts, kernel=kernel).eval()
    x = torch.randn(num_rows, 256, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        trained = mixture(x).output
        with torch.no_grad():
            output = mixture(x).output
    assert output.dtype is trained.dtype is torch.bfloat16
    torch.testing.assert_close(output, trained, rtol=0, atol=0.02)


@PLAIN_KERNEL
def test_autocast_does_not_round_the_weights_that_outputs_are_added_with(kernel: str) -> None:
    mixture = make_mixture("top_k", 16, k=9, kernel=kernel)
    with torch.no_grad():
        for stack in mixture.experts.parameters():
            stack.zero_()
        stacks_of(experts_of(mixture))[-1].fill_(1)
    with torch.autocast("cpu", torch.bfloat16):
        output = mixture(torch.randn(200, DIM)).output
    # Every expert answers 1; weights of 8 bits would add up to 1 for some rows only.
    assert torch.equal(output, torch.ones_like(output))


@PLAIN_KERNEL
def test_bfloat16_parameters_give_bfloat16_output_and_float32_weights(kernel: str) -> None:
    mixture = make_mixture("comet", kernel=kernel).bfloat16()
    output, penalty, weights = mixture(torch.randn(9, DIM).bfloat16())
    assert (output.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    (output.float().sum() + penalty).backward()
    assert all(parameter.grad is not None for parameter in mixture.parameters())


def test_each_gate_of_several_gives_what_it_gives_alone() -> None:
    experts = Experts(5, (DIM, 7, 4))
    routers = [awake(ROUTERS[name](5, 2)) for name in TRAINED]
    x = torch.randn(30, DIM)
    for kernel in ("auto", *CPU_KERNELS):
        several = MultiGateMixtureOfExperts(routers, experts, kernel=kernel)(x)
        alone = [MixtureOfExperts(router, experts, kernel=kernel)(x) for router in routers]
        torch.testing.assert_close(several.output, torch.stack([one.output for one in alone]))
        torch.testing.assert_close(several.weights, torch.stack([one.weights for one in alone]))
        penalties = torch.stack([one.penalty for one in alone])
        torch.testing.assert_close(several.penalty, penalties.sum())


# Dynamo (torch 2.13) looks at `.grad` of intermediate tensors where a graph breaks, and
# makes an instance of an autograd function to trace it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
# Every router compiles by itself, in test_routers.py; the rest of a mixture does not see which.
@pytest.mark.parametrize("name", ["comet", "dselect_k", "hash", "top_k"])
def test_compiles_with_graph_breaks_to_the_same_answer_and_gradient(name: str) -> None:
    torch.compiler.reset()
    mixture = make_mixture(name)
    # The code generator after capture needs a C++ compiler, and is torch's own.
    compiled = torch.compile(mixture, backend="aot_eager")
    for num_rows in (9, 4, 0):
        inputs = draw_inputs(name, num_rows)
        found = []
        for run in (mixture, compiled):
            output, penalty, _ = run(*inputs)
            loss = output.square().sum() + penalty
            found.append([output, *torch.autograd.grad(loss, list(mixture.experts.parameters()))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@NAME
def test_a_deep_copy_is_equal_and_independent(name: str) -> None:
    mixture = make_mixture(name)
    inputs = draw_inputs(name, 9)
    wanted = mixture(*inputs).output
    wanted.sum().backward()
    twin = copy.deepcopy(mixture)
    assert torch.equal(twin(*inputs).output, wanted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(mixture(*inputs).output, wanted)


def test_forward_changes_no_state() -> None:
    mixture = make_mixture("comet")
    before = copy.deepcopy(mixture.state_dict())
    mixture(torch.randn(9, DIM))
    after = mixture.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_initial_scales_do_not_depend_on_the_number_of_experts() -> None:
    # As torch.nn.Linear: uniform within 1 / sqrt(inputs).
    stack = [each.detach() for each in stacks_of(Experts(64, (16, 8)))]
    assert float(stack[0].abs().max()) == pytest.approx(0.25, rel=0.01)
    assert float(stack[1].abs().max()) == pytest.approx(0.25, rel=0.02)
