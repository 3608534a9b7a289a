"""Penalties are what `moe_gates` says of the gate, by expert, times their weights."""

import pytest
import torch
from _reference import DIM, ROUTERS, awake, draw_inputs
from torch import Tensor, nn

import moe_gates
from moe_runtime import (
    CometRouter,
    Decision,
    DSelectKRouter,
    EntropyPenalty,
    LoadBalancePenalty,
    MutualInformationPenalty,
    SoftmaxRouter,
    TopKRouter,
    TreeTopKRouter,
    TrimmedLassoPenalty,
    ZPenalty,
)

FEATURES = pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"hash"}))


def scores(layer: nn.Module, x: Tensor, *shape: int) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return (x @ layer.weight.T + layer.bias).reshape(*x.shape[:-1], *shape)


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
        assert isinstance(router.bit, nn.Linear)
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


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - {"comet", "dselect_k", "static"}))
def test_routers_without_smooth_steps_have_no_penalty_built_in(name: str) -> None:
    assert float(ROUTERS[name](5, 2)(draw_inputs(name, 9)[-1]).penalty) == 0


def test_penalties_of_scores_are_those_of_their_softmax_and_of_the_pairs() -> None:
    router = awake(TopKRouter(DIM, 5, k=2, renormalize=False))
    assert isinstance(router, TopKRouter)
    x = torch.randn(3, 10, DIM)
    linear = scores(router.score, x, -1)
    # The rotation of `awake`: position i stands for expert i - 1.
    by_expert = linear.roll(-1, -1)
    assert router.permutation[0].tolist() == [4, 0, 1, 2, 3]
    weights = router(x).weights
    probabilities = by_expert.softmax(-1)
    wanted = {
        LoadBalancePenalty(): 1e-2 * moe_gates.load_balance_penalty(probabilities, weights),
        ZPenalty(): 1e-3 * linear.logsumexp(-1).square().mean(),
        EntropyPenalty(0.5): 0.5 * moe_gates.entropy_penalty(probabilities[..., None, :]),
        MutualInformationPenalty(2.0): 2.0
        * moe_gates.mutual_information_penalty(probabilities[..., None, :]),
        TrimmedLassoPenalty(3.0, k=1): 3.0 * (weights.sum(-1) - weights.max(-1).values).mean(),
    }
    for penalty, value in wanted.items():
        router.penalties = (penalty,)
        torch.testing.assert_close(router(x).penalty, value)
    router.penalties = tuple(wanted)
    torch.testing.assert_close(router(x).penalty, torch.stack(list(wanted.values())).sum())


def test_slots_with_permutations_of_their_own_are_balanced_by_expert() -> None:
    # Both trees send every row to the first expert: by position they collide, by expert not.
    router = CometRouter(DIM, 2, k=2, entropy_weight=0.0, penalties=[LoadBalancePenalty(1.0)])
    with torch.no_grad():
        router.split.weight.zero_()
        router.split.bias.fill_(10.0)
    x = torch.randn(20, DIM)
    torch.testing.assert_close(router(x).penalty, torch.tensor(2.0))
    router.set_permutation(torch.tensor([[0, 1], [1, 0]]))
    torch.testing.assert_close(router(x).penalty, torch.tensor(1.0))


@FEATURES
def test_every_router_takes_penalties_whose_gradient_is_finite(name: str) -> None:
    penalties = [MutualInformationPenalty(0.1), LoadBalancePenalty(), TrimmedLassoPenalty(0.1, k=1)]
    for num_rows in (0, 1, 30):
        router = awake(ROUTERS[name](5, 2))
        before = router(torch.zeros(num_rows, DIM)).penalty
        router.penalties = tuple(penalties)
        penalty = router(torch.zeros(num_rows, DIM)).penalty
        assert num_rows == 0 or float(penalty.detach()) != float(before.detach())
        router(torch.randn(num_rows, DIM)).penalty.backward()
        for parameter in router.parameters():
            assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all())


def test_a_penalty_may_be_any_function_of_the_decision() -> None:
    seen: list[Decision] = []

    def largest(decision: Decision) -> Tensor:
        seen.append(decision)
        return decision.weights.max()

    router = SoftmaxRouter(DIM, 4, penalties=[largest])
    weights, penalty, _ = router(torch.randn(7, DIM))
    assert torch.equal(penalty, weights.max())
    assert torch.equal(seen[0].weights, weights)
    assert seen[0].probabilities.shape == (7, 1, 4)
    tree = TreeTopKRouter(DIM, 4, k=2, num_trees=3, penalties=[largest])
    tree(torch.randn(7, DIM))
    assert seen[1].probabilities.shape == (7, 3, 4)
    assert seen[1].scores is None


def test_a_mutual_information_penalty_spreads_what_entropy_alone_collapses() -> None:
    x = torch.randn(200, DIM) + 1
    loads = []
    for penalties in ((), (MutualInformationPenalty(1.0),)):
        torch.manual_seed(0)
        router = CometRouter(DIM, 4, k=1, penalties=penalties)
        optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            router(x).penalty.backward()
            optimizer.step()
        loads.append(router(x).weights.mean(0).max().item())
    assert loads[0] > 0.9
    assert loads[1] < 0.5
