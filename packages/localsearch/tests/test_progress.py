"""A long search tells where it stands, and can be stopped with the best so far."""

from typing import Any

import numpy as np
import pytest

from moe_localsearch import (
    Method,
    SearchProgress,
    StopReason,
    anneal,
    descend_by_swaps,
    exhaustive,
    frank_wolfe,
    relabel_slots,
    relax,
    replace_and_assign,
    search,
)
from moe_localsearch.testing import planted_problem, planted_slots

FUNCTIONS = [anneal, descend_by_swaps, exhaustive, frank_wolfe, relax, replace_and_assign, search]


class StopAfter:
    """Ask the search to stop when it is about to ask for the time `limit + 1`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.told: list[SearchProgress] = []

    def __call__(self, progress: SearchProgress) -> None:
        if len(self.told) == self.limit:
            raise StopIteration
        self.told.append(progress)


def objective() -> Any:
    return planted_problem(num_rows=200, size=6, num_nonzero=2, noise=2.0, seed=1).objective


@pytest.mark.parametrize("function", FUNCTIONS)
def test_progress_tells_the_best_cost_evaluations_and_time(function: Any) -> None:
    watch = StopAfter(10**9)
    result = function(objective(), progress=watch)
    unwatched = function(objective())
    np.testing.assert_array_equal(result.permutation, unwatched.permutation)
    costs = [each.cost for each in watch.told]
    assert costs[0] == result.cost_before
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] >= result.cost_after - 1e-12
    counts = [each.num_evaluations for each in watch.told]
    assert counts == sorted(counts)
    assert counts[-1] <= result.num_evaluations
    seconds = [each.seconds for each in watch.told]
    assert 0 <= seconds[0] <= seconds[-1] <= result.seconds
    assert watch.told[-1].method == result.method


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_a_stopped_search_returns_its_best(function: Any, limit: int) -> None:
    watch = StopAfter(limit)
    problem = objective()
    result = function(problem, progress=watch)
    assert len(watch.told) <= limit
    assert result.cost_after == problem(result.permutation[None])[0] <= result.cost_before
    if len(watch.told) == limit:
        assert result.stop_reason in {StopReason.STOPPED, *function(problem).stop_reason.__class__}
    if limit == 0:
        assert result.stop_reason is StopReason.STOPPED
        assert not result.converged


@pytest.mark.parametrize("method", ["auto", "anneal"])
@pytest.mark.parametrize("limit", [0, 3, 8])
def test_a_stopped_search_is_confirmed_and_restarts_no_more(method: Method, limit: int) -> None:
    problem = planted_problem(num_rows=900, size=8, num_nonzero=2, seed=0).objective
    watch = StopAfter(limit)
    result = search(
        problem.on_rows(range(600)),
        method=method,
        num_restarts=3,
        confirm=problem.on_rows(range(600, 900)),
        progress=watch,
    )
    assert len(watch.told) == limit
    assert result.confirmation is not None
    assert "restarts" not in result.method
    moved = not np.array_equal(result.permutation, range(8))
    assert moved is bool(result.confirmation.accepted)


def test_slots_are_stopped_with_what_they_have() -> None:
    problem = planted_slots(num_rows=300, num_slots=2, size=5, num_nonzero=2, seed=0)
    told = []
    for limit in (0, 4, 10**9):
        watch = StopAfter(limit)
        result = relabel_slots(*problem[:3], progress=watch)
        told.append(len(watch.told))
        assert (result.stop_reason is StopReason.STOPPED) is (limit < 10**9)
        assert result.cost_after <= result.cost_before
        if watch.told:
            costs = [each.cost for each in watch.told]
            assert costs == sorted(costs, reverse=True)
    assert told[:2] == [0, 4] < told[2:]


def test_other_exceptions_of_the_callback_are_not_swallowed() -> None:
    def fail(_progress: SearchProgress) -> None:
        msg = "disk full"
        raise OSError(msg)

    with pytest.raises(OSError, match="disk full"):
        search(objective(), progress=fail)
    word: Any = "loud"
    with pytest.raises(TypeError, match="`progress` must be callable, got str"):
        search(objective(), progress=word)
