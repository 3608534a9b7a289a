"""A router is a gate of moe_gates, a permutation, and hard routing."""

from collections.abc import Callable

import array_api_compat.torch as xp
import pytest
import torch
from _reference import DIM, NUM_IDS, ROUTERS, TRAINED, awake, draw_inputs, make_mixture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import moe_gates
from moe_runtime import (
    CometRouter,
    DSelectKRouter,
    HashRouter,
    Router,
    TopKRouter,
    hard_routing,
)

NAME = pytest.mark.parametrize("name", sorted(ROUTERS))
NUM_EXPERTS = pytest.mark.parametrize("num_experts", [2, 3, 5, 8])


def scores(layer: nn.Linear, x: Tensor, *shape: int) -> Tensor:
    return (x @ layer.weight.T + layer.bias).reshape(*x.shape[:-1], *shape)


def slot_weights_of(router: Router, x: Tensor, *, hard: bool) -> Tensor:
    """Call the gate of a router directly."""
    experts, k = router.num_experts, router.k
    match router:
        case CometRouter():
            splits, leaves = scores(router.split, x, k, experts - 1), scores(router.leaf, x, k, -1)
            gate = moe_gates.comet_gate(splits, leaves, gamma=router.gamma, hard=hard)
            return gate.slot_weights
        case DSelectKRouter():
            bits, selectors = scores(router.bit, x, k, -1), scores(router.selector, x, k)
            gate = moe_gates.dselect_k_gate(
                bits, selectors, num_experts=experts, gamma=router.gamma, hard=hard
            )
            return gate.slot_weights
        case TopKRouter():
            weights = moe_gates.top_k_gate(scores(router.score, x, experts), k=k)
        case HashRouter():
            dtype = torch.float32
            table = router.table
            weights = moe_gates.hash_gate(x, table, num_experts=experts, dtype=dtype, xp=xp)
    return weights[:, None]


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
def test_rows_sum_to_1_or_less_where_codes_reach_nothing(name: str) -> None:
    for num_experts in (5, 8):
        router = awake(ROUTERS[name](num_experts, 2))
        total = router(draw_inputs(name, 40)[-1]).weights.sum(-1)
        if name == "dselect_k" and num_experts == 5:
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
    other = ROUTERS[name](5, 2)
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


@pytest.mark.parametrize("name", ["comet", "dselect_k"])
@pytest.mark.parametrize("num_experts", [5, 8])
def test_the_penalty_is_the_weighted_sum_it_says_and_reaches_the_splits(
    name: str, num_experts: int
) -> None:
    router = awake(ROUTERS[name](num_experts, 2))
    x = torch.randn(30, DIM)
    penalty = router(x).penalty
    assert isinstance(router, CometRouter | DSelectKRouter)
    if isinstance(router, CometRouter):
        splits, leaves = scores(router.split, x, 2, -1), scores(router.leaf, x, 2, -1)
        gate = moe_gates.comet_gate(splits, leaves, gamma=1.0)
        wanted = 0.1 * moe_gates.entropy_penalty(gate.slot_probabilities)
        decides = router.split
    else:
        bits, selectors = scores(router.bit, x, 2, -1), scores(router.selector, x, 2)
        gate = moe_gates.dselect_k_gate(bits, selectors, num_experts=num_experts, gamma=1.0)
        wanted = 0.1 * moe_gates.entropy_penalty(gate.slot_probabilities)
        if num_experts == 5:
            wanted = wanted + moe_gates.unreachable_penalty(gate.slot_probabilities)
        decides = router.bit
    torch.testing.assert_close(penalty, wanted)
    penalty.backward()
    assert decides.weight.grad is not None
    assert bool(torch.isfinite(decides.weight.grad).all())
    assert bool(decides.weight.grad.any())


def test_the_entropy_penalty_shrinks_entropy_when_it_is_descended() -> None:
    router = CometRouter(DIM, 8, k=2, entropy_weight=1.0)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    x = torch.randn(100, DIM)
    values = []
    for _ in range(30):
        penalty = router(x).penalty
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(float(penalty.detach()))
    # It starts near 2 trees x log(8) nats.
    assert values[0] == pytest.approx(2 * 2.079, rel=0.01)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("name", ["hash", "top_k"])
def test_routers_that_always_keep_the_bound_have_no_penalty(name: str) -> None:
    assert float(ROUTERS[name](5, 2)(draw_inputs(name, 9)[-1]).penalty) == 0


@NAME
def test_no_rows_route_to_nothing_with_a_finite_penalty(name: str) -> None:
    for num_experts in (5, 8):
        routing = ROUTERS[name](num_experts, 2)(draw_inputs(name, 0)[-1])
        assert routing.weights.shape == (0, num_experts)
        assert float(routing.penalty.detach()) == 0


def test_split_scores_are_those_whose_sign_routes() -> None:
    router = awake(CometRouter(DIM, 2, k=1))
    assert isinstance(router, CometRouter)
    x = torch.randn(30, DIM)
    left = router.split_scores(x)[:, 0, 0] >= 0
    with hard_routing(router):
        position = router(x).slot_weights[:, 0].argmax(-1)
    assert torch.equal(position == 0, left)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_ids_of_any_integer_dtype_route_alike(dtype: torch.dtype) -> None:
    router = HashRouter(NUM_IDS, 5, seed=3)
    ids = torch.arange(NUM_IDS).reshape(5, 8)
    weights = router(ids.to(dtype)).weights
    assert torch.equal(weights.argmax(-1), router.table.long()[ids])
    assert torch.equal(weights.sum(-1), torch.ones(5, 8))


@pytest.mark.parametrize("bad", [-1, NUM_IDS])
def test_ids_outside_the_table_are_refused(bad: int) -> None:
    low, high = min(bad, 3), max(bad, 3)
    message = rf"`router_input` must hold ids in \[0, {NUM_IDS}\), got {low}\.\.{high}\."
    with pytest.raises(ValueError, match=message):
        HashRouter(NUM_IDS, 5)(torch.tensor([3, bad]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_ids_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"must hold integer ids.*got dtype {dtype}"):
        HashRouter(NUM_IDS, 5)(torch.zeros(3, dtype=dtype))


BAD: list[tuple[str, Callable[[], object], str]] = [
    ("k", lambda: TopKRouter(DIM, 4, k=5), "`k` must be in [1, num_experts=4], got 5."),
    ("k_0", lambda: CometRouter(DIM, 4, k=0), "`k` must be in [1, num_experts=4], got 0."),
    ("experts", lambda: TopKRouter(DIM, 0, k=1), "`num_experts` must be an integer >= 1, got 0."),
    ("leaf", lambda: CometRouter(DIM, 1, k=1), "`num_experts` must be an integer >= 2, got 1."),
    ("bit", lambda: DSelectKRouter(DIM, 1, k=1), "`num_experts` must be an integer >= 2, got 1."),
    ("dim", lambda: CometRouter(0, 4, k=1), "`dim` must be an integer >= 1, got 0."),
    ("bool", lambda: CometRouter(True, 4, k=1), "`dim` must be an integer >= 1, got True."),  # noqa: FBT003
    ("gamma", lambda: CometRouter(DIM, 4, k=1, gamma=0.0), "`gamma` must be in"),
    (
        "entropy",
        lambda: CometRouter(DIM, 4, k=1, entropy_weight=-0.1),
        "`entropy_weight` must be finite and >= 0, got -0.1.",
    ),
    (
        "unreachable",
        lambda: DSelectKRouter(DIM, 4, k=1, unreachable_weight=float("nan")),
        "`unreachable_weight` must be finite and >= 0, got nan.",
    ),
    ("ids", lambda: HashRouter(0, 4), "`num_ids` must be an integer >= 1, got 0."),
]


@pytest.mark.parametrize(
    ("build", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_a_router_that_cannot_be_is_refused_by_name_range_and_value(
    build: Callable[[], object], message: str
) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        build()
    assert message in str(caught.value)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("shape", [(3, DIM + 1), (DIM - 1,), ()], ids=str)
def test_an_input_of_another_width_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`router_input` must have shape \(\.\.\., 6\), got"):
        ROUTERS[name](4, 2)(torch.zeros(shape))
