"""The walk by gathering, and what is made of any walk."""

import pytest
import torch
from _trees import NUM_EXPERTS, reference_walk, whole_numbers

from moe_runtime._comet_walk import spread, walk_by_gather


@pytest.mark.parametrize("num_experts", NUM_EXPERTS)
@pytest.mark.parametrize("num_slots", [1, 3])
def test_the_gathered_walk_leads_where_the_naive_loop_leads(
    num_experts: int, num_slots: int
) -> None:
    x_TD, nodes = whole_numbers(num_experts, num_slots, num_rows=19, dim=7)
    position_TK, weight_TK = walk_by_gather(x_TD, nodes, num_slots)
    wanted_position_TK, wanted_weight_TK = reference_walk(x_TD, nodes, num_slots)
    assert torch.equal(position_TK, wanted_position_TK)
    torch.testing.assert_close(weight_TK, wanted_weight_TK, rtol=1e-14, atol=0)


def test_the_gathered_walk_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TD, nodes = whole_numbers(17, 2, num_rows=50, dim=7)
    whole = walk_by_gather(x_TD, nodes, 2)
    monkeypatch.setattr("moe_runtime._comet_walk.GATHERED", 100)
    assert all(map(torch.equal, walk_by_gather(x_TD, nodes, 2), whole))


def test_trees_that_lead_to_one_expert_weigh_there_together() -> None:
    x_TD, nodes = whole_numbers(3, 4, num_rows=30, dim=5)
    walk = walk_by_gather(x_TD, nodes, 4)
    order_KE = torch.stack([torch.randperm(3) for _ in range(4)])
    weights_TE, slot_weights_TKE = spread(walk, order_KE)
    wanted_TE, wanted_TKE = torch.zeros(30, 3).double(), torch.zeros(30, 4, 3).double()
    for row in range(30):
        for slot in range(4):
            position, weight = int(walk.position_TK[row, slot]), walk.weight_TK[row, slot]
            wanted_TKE[row, slot, position] = weight
            wanted_TE[row, order_KE[slot, position]] += weight
    assert torch.equal(slot_weights_TKE, wanted_TKE)
    torch.testing.assert_close(weights_TE, wanted_TE, rtol=1e-15, atol=0)
