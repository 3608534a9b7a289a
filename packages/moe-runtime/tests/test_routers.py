"""A router is a gate of moe_gates, a permutation, and hard routing."""

import copy

import array_api_compat.torch as xp
import pytest
import torch
from _reference import DIM, ROUTERS, awake, draw_inputs, make_mixture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import moe_gates
from moe_runtime import (
    CometRouter,
    CosineScores,
    DSelectKRouter,
    ExactKRouter,
    HashRouter,
    ReLURouter,
    Router,
    SoftmaxRouter,
    TopKRouter,
    TopKSparsemaxRouter,
    TreeTopKRouter,
    hard_routing,
)
from moe_runtime._score_router import ScoreRouter

NAME = pytest.mark.parametrize("name", sorted(ROUTERS))
FEATURES = pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"hash"}))
NUM_EXPERTS = pytest.mark.parametrize("num_experts", [2, 3, 5, 8])


def scores(layer: nn.Module, x: Tensor, *shape: int) -> Tensor:
    if not isinstance(layer, nn.Linear):  # of a static gate
        assert isinstance(layer.bias, Tensor)
        return layer.bias.expand(*x.shape[:-1], -1).reshape(*x.shape[:-1], *shape)
    return (x @ layer.weight.T + layer.bias).reshape(*x.shape[:-1], *shape)


def cosines(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, CosineScores)
    rows = nn.functional.normalize(x @ layer.project.weight.T, dim=-1)
    experts = nn.functional.normalize(layer.embedding, dim=-1)
    return rows @ experts.T / layer.log_temperature.exp()


def slot_weights_of(router: Router, x: Tensor, *, hard: bool) -> Tensor:
    """Call the gate of a router directly, on scores of our own."""
    experts, k = router.num_experts, router.k
    match router:
        case CometRouter():
            splits, leaves = scores(router.split, x, k, -1), scores(router.leaf, x, k, -1)
            return moe_gates.comet_gate(splits, leaves, gamma=router.gamma, hard=hard).slot_weights
        case DSelectKRouter():
            bits, selectors = scores(router.bit, x, k, -1), scores(router.selector, x, k)
            return moe_gates.dselect_k_gate(
                bits, selectors, num_experts=experts, gamma=router.gamma, hard=hard
            ).slot_weights
        case TreeTopKRouter():
            trees = router.num_trees
            splits, leaves = scores(router.split, x, trees, -1), scores(router.leaf, x, trees, -1)
            return moe_gates.tree_top_k_gate(splits, leaves, k=k).weights[:, None]
        case HashRouter():
            dtype, table = torch.float32, router.table
            weights = moe_gates.hash_gate(x, table, num_experts=experts, dtype=dtype, xp=xp)
            return weights[:, None]  # type: ignore[no-any-return]
    return weights_of(router, x, hard=hard)[:, None]


def weights_of(router: Router, x: Tensor, *, hard: bool) -> Tensor:
    """Call a gate with one score an expert."""
    assert isinstance(router, ScoreRouter)
    k = router.k
    if isinstance(router, TopKRouter) and router.balancing_bias is not None:
        return moe_gates.top_k_gate(
            cosines(router.score, x),
            k=k,
            affinity="sigmoid",
            renormalize=False,
            bias=router.balancing_bias,
        )
    linear = scores(router.score, x, router.num_experts)
    match router:
        case SoftmaxRouter() if not hard:
            return moe_gates.softmax_gate(linear)
        case SoftmaxRouter() | TopKRouter():
            return moe_gates.top_k_gate(linear, k=k)
        case TopKSparsemaxRouter():
            return moe_gates.top_k_sparsemax_gate(linear, k=k)
        case ReLURouter():
            return moe_gates.relu_gate(linear, k=k)
        case ExactKRouter():
            return moe_gates.exact_k_gate(linear, k=k)
    raise NotImplementedError


@NAME
@NUM_EXPERTS
@pytest.mark.parametrize("hard", [False, True])
def test_weights_are_those_of_the_gate_at_the_permuted_experts(
    name: str, num_experts: int, *, hard: bool
) -> None:
    router = awake(ROUTERS[name](num_experts, 2)).double()
    x = draw_inputs(name, 40)[-1]
    x = x if name == "hash" else x.double()
    router.hard = hard
    wanted = slot_weights_of(router, x, hard=hard)
    routing = router(x)
    torch.testing.assert_close(routing.slot_weights, wanted)
    moved = torch.zeros_like(wanted)
    for slot, order in enumerate(router.permutation.tolist()):
        for position, expert in enumerate(order):
            moved[:, slot, expert] += wanted[:, slot, position]
    torch.testing.assert_close(routing.weights, moved.sum(1))


@given(
    name=st.sampled_from(sorted(ROUTERS)),
    num_experts=st.integers(2, 9),
    k=st.integers(1, 4),
    num_rows=st.integers(0, 40),
)
def test_hard_routing_uses_at_most_k_experts_for_every_row(
    name: str, num_experts: int, k: int, num_rows: int
) -> None:
    router = awake(ROUTERS[name](num_experts, min(k, num_experts)))
    with hard_routing(router):
        weights = router(draw_inputs(name, num_rows)[-1]).weights
    assert bool(((weights != 0).sum(-1) <= router.k).all())
    assert bool((weights >= 0).all())


@NAME
@pytest.mark.parametrize("hard", [False, True])
def test_no_row_uses_more_experts_than_the_router_says(name: str, *, hard: bool) -> None:
    router = awake(ROUTERS[name](8, 3))
    router.hard = hard
    soft = {"comet", "dselect_k", "softmax", "static"}
    assert router.max_active == (8 if name in soft and not hard else router.k)
    used = (router(draw_inputs(name, 200)[-1]).weights != 0).sum(-1)
    assert int(used.max()) <= router.max_active
    if name in {"comet", "dselect_k", "softmax"} and not hard:
        assert int(used.max()) > router.k


@NAME
def test_rows_sum_to_what_the_gate_promises(name: str) -> None:
    for num_experts in (5, 8):
        router = awake(ROUTERS[name](num_experts, 2))
        total = router(draw_inputs(name, 40)[-1]).weights.sum(-1)
        if name == "relu":
            assert bool((total >= 0).all())
        elif name == "biased_top_k":
            assert bool(((total > 0) & (total <= 2)).all())
        elif name in {"dselect_k", "static"} and num_experts == 5:
            # A code may stand for no expert.
            assert bool((total <= 1 + 1e-6).all())
            assert bool((total < 0.999).any())
        else:
            torch.testing.assert_close(total, torch.ones(40))


def test_hard_routing_reaches_every_router_and_restores_each() -> None:
    model = nn.Sequential(make_mixture("comet"), nn.ModuleList([make_mixture("dselect_k")]))
    routers = [module for module in model.modules() if isinstance(module, Router)]
    routers[0].hard = True
    with hard_routing(model):
        assert [router.hard for router in routers] == [True, True]
    assert [router.hard for router in routers] == [True, False]


def test_hard_routing_restores_after_an_exception() -> None:
    router = ROUTERS["comet"](4, 2)
    with pytest.raises(KeyError), hard_routing(router):
        raise KeyError
    assert router.hard is False


@NAME
def test_the_permutation_is_part_of_the_state(name: str) -> None:
    router = awake(ROUTERS[name](5, 2))
    other = ROUTERS[name](5, 2).eval()
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.permutation, router.permutation)
    x = draw_inputs(name, 20)[-1]
    assert torch.equal(other(x).weights, router(x).weights)


def test_a_fresh_router_has_the_identity_in_every_slot() -> None:
    assert ROUTERS["comet"](4, 2).permutation.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 1], [0, 1, 2]],
        [[0, 1, 3], [0, 1, 2]],
        [[-1, 0, 1], [0, 1, 2]],
        [[0, 1, 2]],
        [0, 1, 2],
        [[0, 1], [1, 0]],
    ],
    ids=["twice", "too_large", "negative", "one_slot", "one_axis", "too_few"],
)
def test_anything_but_a_permutation_for_each_slot_is_refused(rows: list[list[int]]) -> None:
    router = awake(ROUTERS["comet"](3, 2))
    before = router.permutation.clone()
    with pytest.raises(ValueError, match=r"`permutation` must have shape \(2, 3\).*0\.\.2 once"):
        router.set_permutation(torch.tensor(rows))
    assert torch.equal(router.permutation, before)


@NAME
def test_no_rows_route_to_nothing_with_a_finite_penalty(name: str) -> None:
    for num_experts in (5, 8):
        routing = ROUTERS[name](num_experts, 2)(draw_inputs(name, 0)[-1])
        assert routing.weights.shape == (0, num_experts)
        if name == "static":
            # The same for all rows, however many: of its entropy, and of its codes.
            assert bool(torch.isfinite(routing.penalty))
        else:
            assert float(routing.penalty.detach()) == 0


def test_split_scores_are_those_whose_sign_routes() -> None:
    router = awake(CometRouter(DIM, 2, k=1))
    assert isinstance(router, CometRouter)
    x = torch.randn(30, DIM)
    left = router.split_scores(x)[:, 0, 0] >= 0
    with hard_routing(router):
        position = router(x).slot_weights[:, 0].argmax(-1)
    assert torch.equal(position == 0, left)


@FEATURES
@pytest.mark.parametrize("shape", [(3, DIM + 1), (DIM - 1,), ()], ids=str)
def test_an_input_of_another_width_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`router_input` must have shape \(\.\.\., 6\), got"):
        ROUTERS[name](4, 2)(torch.zeros(shape))


@FEATURES
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_rows", [0, 1, 9])
def test_every_parameter_gets_a_finite_gradient(
    name: str, num_rows: int, *, training: bool
) -> None:
    router = awake(ROUTERS[name](5, 2)).train(training)
    weights, penalty, _ = router(torch.randn(num_rows, DIM))
    (weights.square().sum() + penalty).backward()
    for parameter in router.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())
        # Constant weights of 1 / k have no other gradient; nor has a row that is all 0.
        assert num_rows < 2 or bool(parameter.grad.any())


@NAME
def test_a_router_may_be_made_without_memory_and_filled_later(name: str) -> None:
    router = awake(ROUTERS[name](5, 2))
    with torch.device("meta"):
        other = ROUTERS[name](5, 2).eval()
    other.to_empty(device="cpu").load_state_dict(router.state_dict())
    x = draw_inputs(name, 20)[-1]
    assert torch.equal(other(x).weights, router(x).weights)


@FEATURES
def test_scores_of_any_size_give_no_nan(name: str) -> None:
    router = awake(ROUTERS[name](5, 2)).train()
    x = 1e4 * torch.randn(50, DIM)
    weights, penalty, _ = router(x)
    assert bool(torch.isfinite(weights).all())
    (weights.sum() + penalty).backward()
    for parameter in router.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())


@FEATURES
def test_routing_is_float32_with_half_precision_parameters_and_under_autocast(name: str) -> None:
    router = awake(ROUTERS[name](5, 2)).bfloat16()
    x = torch.randn(30, DIM).bfloat16()
    wide = copy.deepcopy(router).float()
    routing = router(x)
    assert routing.weights.dtype is routing.penalty.dtype is torch.float32
    assert torch.equal(routing.weights, wide(x.float()).weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wide(x).weights, routing.weights)
    (routing.weights.square().sum() + routing.penalty).backward()
    assert all(parameter.grad is not None for parameter in router.parameters())


@NAME
def test_evaluation_repeats_to_the_bit_and_draws_nothing(name: str) -> None:
    router = awake(ROUTERS[name](5, 2))
    x = draw_inputs(name, 30)[-1]
    before = torch.get_rng_state()
    assert torch.equal(router(x).weights, router(x).weights)
    router.train().hard = True
    assert torch.equal(router(x).weights, router(x).weights)
    assert torch.equal(torch.get_rng_state(), before)


# Dynamo (torch 2.13) makes an instance of an autograd function to trace it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@NAME
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    router = awake(ROUTERS[name](5, 2))
    # The code generator after capture needs a C++ compiler, and is torch's own.
    compiled = torch.compile(router, backend="aot_eager", fullgraph=True)
    for num_rows, training in ((9, True), (4, False)):
        router.train(training)
        x = draw_inputs(name, num_rows)[-1]
        found = []
        for run in (router, compiled):
            torch.manual_seed(0)
            weights, penalty, _ = run(x)
            loss = weights.square().sum() + penalty
            parameters = list(router.parameters())
            found.append([loss, *(torch.autograd.grad(loss, parameters) if parameters else ())])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
