"""The compiled walk is the dense hard gate, without the nodes beside the paths."""

import array_api_compat.torch as xp
import pytest
import torch
from _trees import NUM_EXPERTS, reference_walk, whole_numbers

import moe_gates
from moe_runtime._comet_walk import Nodes, spread, walk_by_gather, walk_by_numba

pytest.importorskip("numba", reason='needs the extra: pip install "moe-runtime[numba]"')

from moe_runtime import _numba_rows


@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
@pytest.mark.parametrize("num_slots", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_leads_where_the_naive_loop_leads(
    num_experts: int, num_slots: int, dtype: torch.dtype
) -> None:
    x_TD, nodes = whole_numbers(num_experts, num_slots, num_rows=19, dim=7)
    # Every sum is exact, so that every decision is the same, those at 0 too.
    position_TK, weight_TK = walk_by_numba(
        x_TD.to(dtype), Nodes(*(part.to(dtype) for part in nodes)), num_slots
    )
    wanted_position_TK, wanted_weight_TK = reference_walk(x_TD, nodes, num_slots)
    assert torch.equal(position_TK, wanted_position_TK)
    torch.testing.assert_close(weight_TK, wanted_weight_TK.to(dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_experts", [2, 5, 64])
def test_spread_out_it_is_the_dense_hard_gate(num_experts: int) -> None:
    x_TD, nodes = whole_numbers(num_experts, 3, num_rows=100, dim=5)
    splits = torch.unflatten(x_TD @ nodes.split_weight.T + nodes.split_bias, -1, (3, -1))
    leaves = torch.unflatten(x_TD @ nodes.leaf_weight.T + nodes.leaf_bias, -1, (3, -1))
    gate = moe_gates.comet_gate(splits, leaves, gamma=1.0, hard=True, xp=xp)
    identity = torch.arange(num_experts).repeat(3, 1)
    weights_TE, slot_weights_TKE = spread(walk_by_numba(x_TD, nodes, 3), identity)
    torch.testing.assert_close(slot_weights_TKE, gate.slot_weights, rtol=1e-14, atol=0)
    torch.testing.assert_close(weights_TE, gate.weights, rtol=1e-14, atol=0)
    # Trees that lead to one expert weigh there together, as `comet_route` merges them.
    parts = [torch.unflatten(part, 0, (3, -1)) for part in nodes]
    route = moe_gates.comet_route(
        x_TD, parts[0], parts[2], split_bias=parts[1], leaf_bias=parts[3], xp=xp
    )
    merged = moe_gates.to_dense(route, num_experts=num_experts, xp=xp)
    torch.testing.assert_close(weights_TE, merged, rtol=1e-14, atol=0)


@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("dim", [1, 3, 100])
def test_takes_any_number_of_rows_and_features(num_rows: int, dim: int) -> None:
    x_TD, nodes = whole_numbers(17, 2, num_rows, dim)
    numba, gather = walk_by_numba(x_TD, nodes, 2), walk_by_gather(x_TD, nodes, 2)
    assert torch.equal(numba.position_TK, gather.position_TK)
    torch.testing.assert_close(numba.weight_TK, gather.weight_TK, rtol=1e-14, atol=0)


def test_takes_rows_and_nodes_of_any_layout() -> None:
    x_TD, nodes = whole_numbers(9, 2, num_rows=30, dim=6)
    strided = Nodes(*(torch.stack([part, part], -1)[..., 0] for part in nodes))
    found = walk_by_numba(x_TD.T.contiguous().T, strided, 2)
    assert all(map(torch.equal, found, walk_by_numba(x_TD, nodes, 2)))


@pytest.mark.usefixtures("_threads_restored")
def test_several_threads_give_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TD, nodes = (
        torch.randn(1001, 33),
        Nodes(
            torch.randn(2 * 16, 33),
            torch.randn(2 * 16),
            torch.randn(2 * 17, 33),
            torch.randn(2 * 17),
        ),
    )
    alone = walk_by_numba(x_TD, nodes, 2)
    monkeypatch.setattr(_numba_rows, "NANOSECONDS_A_THREAD", 1)
    for num_threads in (2, 3, 7):
        torch.set_num_threads(num_threads)
        assert all(map(torch.equal, walk_by_numba(x_TD, nodes, 2), alone))


def test_a_row_does_not_depend_on_its_batch() -> None:
    _, nodes = whole_numbers(17, 2, 1, 50)
    x_TD = torch.randn(21, 50, dtype=torch.float64)
    together = walk_by_numba(x_TD, nodes, 2)
    for row in range(21):
        alone = walk_by_numba(x_TD[row : row + 1], nodes, 2)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))


def test_scores_of_1e4_give_finite_weights() -> None:
    x_TD, nodes = whole_numbers(17, 3, 50, 4)
    x_TD, nodes = x_TD.float(), Nodes(*(part.float() * 1e3 for part in nodes))
    weight_TK = walk_by_numba(x_TD, nodes, 3).weight_TK
    torch.testing.assert_close(weight_TK.sum(-1), torch.ones(50))
