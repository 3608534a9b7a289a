"""A hash router looks up the expert of each id, and refuses ids that it does not know."""

import pytest
import torch
from _reference import NUM_IDS

from moe_runtime import HashRouter


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


def test_a_table_of_the_callers_is_copied_and_routes() -> None:
    table = torch.tensor([2, 0, 2, 1])
    router = HashRouter(4, 3, table=table)
    table.zero_()
    assert router(torch.arange(4)).weights.argmax(-1).tolist() == [2, 0, 2, 1]
    assert router.state_dict()["table"].dtype is torch.int32


def test_a_table_from_counts_shares_the_load() -> None:
    counts = torch.tensor([5.0, 1, 4, 2, 2, 7, 3, 0])
    router = HashRouter.from_counts(counts, 3)
    ids = torch.arange(8).repeat_interleave(counts.long())
    load = router(ids).weights.sum(0)
    # 24 rows over 3 experts: at best 8 each, and 4/3 - 1/9 times that is promised.
    assert float(load.max()) <= 8 * (4 / 3 - 1 / 9)
    assert float(HashRouter(8, 3)(ids).weights.sum(0).max()) > float(load.max())


def test_seeds_give_different_tables() -> None:
    tables = [HashRouter(NUM_IDS, 5, seed=seed).table for seed in (0, 1, 1)]
    assert not torch.equal(tables[0], tables[1])
    assert torch.equal(tables[1], tables[2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0, 1, 3], r"experts in \[0, num_experts=3\), got 0\.\.3"),
        ([-1, 1, 2], r"experts in \[0, num_experts=3\), got -1\.\.2"),
        ([0, 1], r"integers of shape \(num_ids=3,\), got torch.int64 of shape \(2,\)"),
        ([0.0, 1.0, 2.0], r"integers of shape \(num_ids=3,\), got torch.float32"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashRouter(3, 3, table=torch.tensor(table))
