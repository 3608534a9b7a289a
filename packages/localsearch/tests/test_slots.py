"""A permutation for each slot."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import Method, StopReason, relabel_slots, search
from moe_localsearch.testing import PlantedSlots, planted_problem, planted_slots


def cost_by_the_definition(problem: PlantedSlots, chosen: Any) -> Any:
    mixed = sum(
        np.einsum("ti,tio->to", problem.slot_weights[:, k], problem.outputs[:, permutation])
        for k, permutation in enumerate(chosen)
    )
    return problem.row_loss(mixed, np.arange(len(mixed))).mean()


@given(
    size=st.integers(1, 4), num_slots=st.integers(1, 3), seed=st.integers(0, 9999), data=st.data()
)
def test_never_worse_and_between_the_start_and_the_joint_optimum(
    size: int, num_slots: int, seed: int, data: st.DataObject
) -> None:
    problem = planted_slots(
        num_rows=10,
        num_slots=num_slots,
        size=size,
        num_nonzero=data.draw(st.integers(1, size)),
        noise=2.0,
        seed=seed,
    )
    start = np.array([data.draw(st.permutations(range(size))) for _ in range(num_slots)])
    result = relabel_slots(*problem[:3], permutations=start)
    assert result.cost_before == pytest.approx(cost_by_the_definition(problem, start), rel=1e-12)
    after = cost_by_the_definition(problem, result.permutation)
    assert result.cost_after == pytest.approx(after, rel=1e-12)
    assert result.cost_after <= result.cost_before
    assert result.permutation.shape == (num_slots, size)


def test_a_converged_result_is_optimal_in_each_slot_given_the_others() -> None:
    problem = planted_slots(num_rows=60, num_slots=3, size=4, num_nonzero=1, noise=2.0, seed=0)
    result = relabel_slots(*problem[:3])
    assert result.stop_reason is StopReason.LOCAL_OPTIMUM
    for slot in range(3):
        for permutation in permutations(range(4)):
            changed = result.permutation.copy()
            changed[slot] = permutation
            assert cost_by_the_definition(problem, changed) >= result.cost_after - 1e-12


def test_one_slot_is_the_search_of_one_permutation() -> None:
    problem = planted_problem(num_rows=100, size=6, num_nonzero=2, seed=4)
    alone = search(problem.objective)
    as_slot = relabel_slots(problem.slot_weights[:, None], *problem[1:3])
    np.testing.assert_array_equal(as_slot.permutation, alone.permutation[None])
    assert as_slot.cost_after == alone.cost_after


@pytest.mark.parametrize("method", ["replace_and_assign", "descend_by_swaps", "exhaustive"])
def test_each_slot_is_searched_by_the_method_that_was_asked_for(method: Method) -> None:
    problem = planted_problem(num_rows=60, size=5, num_nonzero=3, noise=2.0, seed=4)
    alone = search(problem.objective, method=method)
    as_slot = relabel_slots(
        problem.slot_weights[:, None], *problem[1:3], method=method, max_sweeps=1
    )
    np.testing.assert_array_equal(as_slot.permutation, alone.permutation[None])
    # The costs of the start and of what was found are asked for once more.
    assert as_slot.num_evaluations == alone.num_evaluations + 2


def test_sweeps_are_limited() -> None:
    problem = planted_slots(num_rows=60, num_slots=3, size=6, num_nonzero=2, seed=0)
    result = relabel_slots(*problem[:3], max_sweeps=1)
    assert result.stop_reason is StopReason.MAX_ROUNDS
    assert not result.converged


def test_a_nan_start_is_returned() -> None:
    problem = planted_slots(num_rows=6, num_slots=2, size=3, num_nonzero=3, seed=0)
    result = relabel_slots(*problem[:2], lambda _mixed, rows: np.full(len(rows), np.nan))
    np.testing.assert_array_equal(result.permutation, [[0, 1, 2], [0, 1, 2]])
    assert result.stop_reason is StopReason.NON_FINITE_COST


def test_confirmation_rows_are_not_searched() -> None:
    problem = planted_slots(num_rows=200, num_slots=2, size=4, num_nonzero=1, seed=0)
    outputs = problem.outputs.copy()
    outputs[150:] = np.nan  # the search would notice
    result = relabel_slots(problem.slot_weights, outputs, problem[2], confirm_rows=range(150, 200))
    assert np.isfinite(result.cost_before)
    assert result.stop_reason is StopReason.NOT_CONFIRMED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutations": [[0, 1, 2]]}, r"`permutations` .*\(K=2, n=3\), got \(1, 3\)"),
        ({"permutations": [[0, 1, 2], [0, 0, 1]]}, r"got 0 at positions \[0, 1\] and no 2"),
        ({"method": "swap"}, r"`method` must be one of \['auto', .*\], got 'swap'"),
        ({"max_sweeps": 0}, "`max_sweeps` must be >= 1, got 0"),
        ({"num_standard_errors": -1.0}, "`num_standard_errors` must be finite and >= 0"),
        ({"confirm_rows": [5]}, r"`confirm_rows` must be in \[0, T=5\), got 5"),
        ({"confirm_rows": []}, "`confirm_rows` must select at least one of T=5 rows, got none"),
        ({"confirm_rows": range(5)}, "`confirm_rows` must leave rows to search, got all T=5"),
        ({"slot_weights": np.zeros((0, 2, 3))}, r"must have T >= 1 rows, got shape \(0, 2, 3\)"),
        ({"slot_weights": np.zeros((5, 3))}, r"`slot_weights` must have shape \(T, K, n\)"),
        ({"slot_weights": np.zeros((5, 0, 3))}, "`slot_weights` must have K >= 1 and n >= 1"),
        ({"slot_weights": np.full((5, 2, 3), np.inf)}, r"must be finite, got inf at \[0, 0, 0\]"),
        ({"outputs": np.zeros((5, 4, 1))}, r"`outputs` .*\(T=5, n=3, O=1\), got \(5, 4, 1\)"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {"slot_weights": np.zeros((5, 2, 3)), "outputs": np.zeros((5, 3, 1))} | change
    weights, outputs = arguments.pop("slot_weights"), arguments.pop("outputs")
    with pytest.raises(ValueError, match=message):
        relabel_slots(weights, outputs, lambda mixed, _rows: mixed[:, 0], **arguments)


def test_a_loss_that_is_no_function_is_named() -> None:
    loss: Any = 3
    with pytest.raises(TypeError, match="`row_loss` must be callable, got int"):
        relabel_slots(np.zeros((5, 2, 3)), np.zeros((5, 3, 1)), loss)
