"""An expert for each id: exact, never worse, and confirmed on other rows."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_localsearch import IdAssignment, StopReason, assign_ids

TOLERANCE = 1e-9  # `STAY` is 1e-10 of the largest cost, for each of a handful of ids


def mean_cost(ids: Any, row_costs: Any, table: Any) -> Any:
    return np.mean(row_costs[np.arange(len(ids)), np.asarray(table)[ids]], dtype=np.float64)


def tables_within(capacity: Any, num_ids: int) -> Any:
    every = product(range(len(capacity)), repeat=num_ids)
    for table in every:
        if np.all(np.bincount(table, minlength=len(capacity)) <= capacity):
            yield np.array(table, dtype=np.int64)


@st.composite
def problems(draw: st.DrawFn) -> Any:
    """Rows of a few ids, not all of them seen; a table, and room for it and more."""
    num_ids, num_experts = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    num_rows = draw(st.integers(1, 15))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    ids = rng.integers(num_ids, size=num_rows)
    shape = (num_rows, num_experts)
    row_costs = draw(
        st.sampled_from([rng.normal(size=shape), rng.integers(0, 3, shape), rng.random(shape, "f")])
    )
    table = rng.integers(num_experts, size=num_ids)
    spare = rng.integers(0, 3, size=num_experts)
    return ids, row_costs, table, np.bincount(table, minlength=num_experts) + spare


@given(problems())
def test_no_table_within_the_capacity_is_cheaper(case: Any) -> None:
    ids, row_costs, start, capacity = case
    result = assign_ids(ids, row_costs, table=start, capacity=capacity)
    costs = [mean_cost(ids, row_costs, t) for t in tables_within(capacity, len(start))]
    assert result.cost_after == pytest.approx(min(costs), abs=TOLERANCE)
    assert np.all(np.bincount(result.table, minlength=len(capacity)) <= capacity)
    assert result.table.dtype == np.int64


@given(problems(), st.floats(0, 4))
def test_it_is_never_worse_and_reports_what_it_did(case: Any, num_standard_errors: float) -> None:
    ids, row_costs, start, capacity = case
    result = assign_ids(
        ids, row_costs, table=start, capacity=capacity, move_standard_errors=num_standard_errors
    )
    row_costs = row_costs.astype(np.float64)
    before, after = (mean_cost(ids, row_costs, table) for table in (start, result.table))
    assert result.cost_after <= result.cost_before
    np.testing.assert_allclose([result.cost_before, result.cost_after], [before, after])
    rows = np.arange(len(ids))
    gains = row_costs[rows, start[ids]] - row_costs[rows, result.table[ids]]
    error = gains.std(ddof=1) / np.sqrt(len(ids)) if len(ids) > 1 else np.inf
    assert result.standard_error == pytest.approx(error, rel=1e-9)
    assert result.num_moved == np.sum(result.table != start)
    assert result.stop_reason is StopReason.OPTIMUM
    assert result.confirmation is None
    assert result.seconds > 0
    load = np.bincount(result.table, minlength=len(capacity))
    assert np.all(result.prices >= 0)
    assert np.all(result.prices[load < capacity] <= TOLERANCE)


def pessimistic_costs(ids: Any, row_costs: Any, table: Any, num_standard_errors: float) -> Any:
    """Return what each id adds to the sum if it moves, by the definition, id by id."""
    num_ids, num_experts = len(table), row_costs.shape[1]
    total = np.zeros((num_ids, num_experts))
    for expert in range(num_experts):
        rows = np.arange(len(ids))
        change = row_costs[:, expert] - row_costs[rows, table[ids]]
        of_ids = [change[ids == each] for each in range(num_ids)]
        within = [float(np.sum((part - part.mean()) ** 2)) if len(part) else 0 for part in of_ids]
        freedom = [max(0, len(part) - 1) for part in of_ids]
        moves = np.flatnonzero(table != expert)  # the changes of the others are 0 by definition
        degrees = sum(freedom[each] for each in moves)
        moved = change[np.isin(ids, moves)]
        noise_of_all = moved.var() if len(moved) else 0.0
        pooled = sum(within[each] for each in moves) / degrees if degrees else noise_of_all
        for each, part in enumerate(of_ids):
            # Two rows of all ids beside its own.
            variance = (within[each] + 2 * pooled) / (freedom[each] + 2)
            noise = num_standard_errors * np.sqrt(len(part) * variance)
            total[each, expert] = part.sum() + (noise if expert != table[each] else 0)
    return total


@given(problems(), st.floats(0.1, 4))
def test_moves_are_weighed_against_their_standard_errors(
    case: Any, num_standard_errors: float
) -> None:
    ids, row_costs, start, capacity = case
    result = assign_ids(
        ids, row_costs, table=start, capacity=capacity, move_standard_errors=num_standard_errors
    )
    costs = row_costs.astype(np.float64)
    weighed = pessimistic_costs(ids, costs, start, num_standard_errors)
    each = np.arange(len(start))
    cheapest = min(weighed[each, t].sum() for t in tables_within(capacity, len(start)))
    assert weighed[each, result.table].sum() == pytest.approx(cheapest, abs=1e-6)
    assert cheapest <= 1e-12  # the start costs 0


def test_the_default_capacity_is_the_largest_load_and_a_permutation_is_never_better() -> None:
    rng = np.random.default_rng(0)
    ids, row_costs = rng.integers(12, size=200), rng.normal(size=(200, 4))
    start = rng.permutation(np.repeat(range(4), 3))
    result = assign_ids(ids, row_costs, table=start)
    np.testing.assert_array_equal(np.bincount(result.table), [3, 3, 3, 3])
    relabelled = [mean_cost(ids, row_costs, np.array(p)[start]) for p in permutations(range(4))]
    assert result.cost_after < min(relabelled) - 0.01
    uneven = assign_ids(ids, row_costs, table=np.where(start == 3, 0, start))
    np.testing.assert_array_equal(np.bincount(uneven.table, minlength=4) <= 6, [True] * 4)
    assert uneven.cost_after <= result.cost_after


def test_more_capacity_is_never_worse_and_room_for_all_gives_each_its_best() -> None:
    rng = np.random.default_rng(1)
    ids, row_costs = rng.integers(10, size=300), rng.normal(size=(300, 3))
    start = np.arange(10) % 3
    results = [assign_ids(ids, row_costs, table=start, capacity=c) for c in (4, 5, 6, 10)]
    costs = [result.cost_after for result in results]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1]
    sums = np.array([row_costs[ids == each].sum(axis=0) for each in range(10)])
    np.testing.assert_array_equal(results[-1].table, sums.argmin(axis=1))
    np.testing.assert_allclose(results[-1].prices, 0, atol=1e-9)


def test_many_ids_are_optimal_by_the_prices() -> None:
    rng = np.random.default_rng(2)
    ids, row_costs = rng.zipf(1.3, size=60_000) % 5000, rng.normal(size=(60_000, 16))
    result = assign_ids(ids, row_costs, table=rng.permutation(np.arange(5000) % 16))
    sums = np.stack([np.bincount(ids, column, minlength=5000) for column in row_costs.T], axis=1)
    bound = (sums + result.prices).min(axis=1).sum() - result.prices.sum() * 313
    assert result.cost_after * 60_000 == pytest.approx(bound, rel=1e-6)
    assert result.cost_after < result.cost_before


def test_ids_without_rows_stay_unless_their_place_is_wanted() -> None:
    ids, row_costs = np.array([0, 0, 2]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    start = [0, 1, 0, 1, 0, 1]  # ids 1, 3, 4 and 5 are unseen; id 0 wants expert 1
    roomy = assign_ids(ids, row_costs, table=start, capacity=6)
    np.testing.assert_array_equal(roomy.table, [1, 1, 0, 1, 0, 1])
    tight = assign_ids(ids, row_costs, table=start)
    assert tight.table[0] == 1
    assert tight.table[2] == 0
    assert tight.num_moved == 2  # one unseen id makes room, and no more
    assert tight.cost_after == 0


@pytest.mark.parametrize("cost", [0.0, 1.0])
def test_equal_experts_move_nothing(cost: float) -> None:
    start = [0, 0, 1, 2, 2, 0]
    result = assign_ids([0, 1, 3], np.full((3, 3), cost), table=start)
    np.testing.assert_array_equal(result.table, start)


@pytest.mark.parametrize("large", [1e12, 1e20])
def test_an_expert_that_has_diverged_does_not_freeze_the_others(large: float) -> None:
    rng = np.random.default_rng(0)
    ids, row_costs = rng.integers(20, size=400), rng.uniform(size=(400, 4))
    row_costs[:, 3] = large
    start = np.arange(20) % 3
    result = assign_ids(ids, row_costs, table=start, capacity=[7, 7, 7, 0])
    alone = assign_ids(ids, row_costs[:, :3], table=start, capacity=7)
    assert alone.num_moved > 0
    assert result.cost_after == pytest.approx(alone.cost_after)


def test_ids_without_rows_stay_where_prices_are_high() -> None:
    # Everybody wants expert 0, which has places for three: its price is a hundred thousand costs.
    num_ids = 100_000
    table, ids = 1 + np.arange(num_ids) % 7, np.repeat(np.arange(40), 5)
    row_costs = np.ones((len(ids), 8))
    row_costs[:, 0] = 0.0
    row_costs += np.random.default_rng(0).random(row_costs.shape) * 0.01
    capacity = np.full(8, num_ids)
    capacity[0] = 3
    result = assign_ids(ids, row_costs, table=table, capacity=capacity)
    np.testing.assert_array_equal(result.table[40:], table[40:])


class TestNoise:
    def draw(self, seed: int) -> tuple[Any, Any, Any]:
        """Many rare ids of noise alone; ids 0 to 3 are frequent, and expert 1 suits them."""
        rng = np.random.default_rng(seed)
        frequent, rare = np.repeat(range(4), 100), np.repeat(range(4, 104), 3)
        ids = rng.permutation(np.concatenate([frequent, rare]))
        row_costs = rng.normal(size=(len(ids), 3))
        row_costs[:, 1] -= 2.0 * (ids < 4)
        return ids, row_costs, np.where(np.arange(104) < 4, 0, np.arange(104) % 3)

    def test_rare_ids_do_not_follow_it_and_frequent_ones_move(self) -> None:
        for seed in range(5):
            ids, row_costs, start = self.draw(seed)
            options: Any = {"table": start, "capacity": 104}
            eager = assign_ids(ids, row_costs, **options)
            careful = assign_ids(ids, row_costs, **options, move_standard_errors=4.0)
            assert np.mean(eager.table[4:] != start[4:]) > 0.5
            assert np.mean(careful.table[4:] != start[4:]) < 0.15
            np.testing.assert_array_equal(careful.table[:4], 1)

    @pytest.mark.parametrize("share", [0.5, 0.05])
    def test_ids_that_are_there_already_say_nothing_of_it(self, share: float) -> None:
        # Noise alone: a change exceeds two of its standard errors by chance in 2.3 of 100 ids,
        # and somewhat more often as their variance is estimated.
        rng = np.random.default_rng(0)
        table = (rng.random(4000) >= share).astype(np.int64)
        ids = np.repeat(np.arange(4000), 2)
        result = assign_ids(
            ids,
            rng.normal(size=(len(ids), 2)),
            table=table,
            capacity=4000,
            move_standard_errors=2.0,
        )
        moved = result.table != table
        assert np.mean(moved[table == 0]) < 0.06
        assert np.mean(moved[table == 1]) < 0.06

    def test_the_more_errors_are_asked_the_fewer_ids_move(self) -> None:
        ids, row_costs, start = self.draw(0)
        moved = [
            assign_ids(ids, row_costs, table=start, capacity=104, move_standard_errors=k).num_moved
            for k in (0.0, 0.5, 1.0, 2.0, 4.0, 100.0)
        ]
        assert moved == sorted(moved, reverse=True)
        assert moved[0] > moved[2] > moved[-1] == 0

    def test_an_id_with_one_row_takes_the_variance_of_the_others(self) -> None:
        ids = np.array([0, 0, 0, 0, 1])
        row_costs = np.array([[0.0, 3.0], [0.0, -3.0], [0.0, 3.0], [0.0, -3.0], [0.0, -2.0]])
        # The variance of id 0 is 36 / 3, so a change of -2 is 0.577 standard errors.
        for errors, expert in ((0.57, 1), (0.58, 0)):
            result = assign_ids(
                ids, row_costs, table=[0, 0], capacity=2, move_standard_errors=errors
            )
            np.testing.assert_array_equal(result.table, [0, expert])

    def test_ids_with_one_row_each_do_not_follow_it(self) -> None:
        row_costs = np.random.default_rng(0).normal(size=(40, 2))
        result = assign_ids(
            np.arange(40), row_costs, table=np.arange(40) % 2, move_standard_errors=50.0
        )
        assert result.num_moved == 0


class TestConfirmation:
    def planted(self, seed: int = 0) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(seed)
        ids = rng.integers(10, size=400)
        likes = rng.integers(3, size=10)[ids]
        row_costs = (likes[:, None] != np.arange(3)) + rng.normal(size=(400, 3))
        return ids, row_costs, np.arange(10) % 3

    def test_a_gain_that_shows_is_kept_with_the_paired_numbers(self) -> None:
        ids, row_costs, start = self.planted()
        confirm = np.arange(400) % 2 == 1
        result = assign_ids(ids, row_costs, table=start, capacity=10, confirm_rows=confirm)
        rows = np.flatnonzero(confirm)
        before = row_costs[rows, start[ids[rows]]]
        after = row_costs[rows, result.table[ids[rows]]]
        assert result.confirmation is not None
        np.testing.assert_allclose(
            result.confirmation,
            [
                before.mean(),
                after.mean(),
                (before - after).mean(),
                (before - after).std(ddof=1) / np.sqrt(200),
                True,
                0,
            ],
        )
        assert result.stop_reason is StopReason.OPTIMUM
        assert result.num_moved > 0
        ratio = result.confirmation.gain / result.confirmation.standard_error
        for factor in (0.99, 1.01):
            again = assign_ids(
                ids,
                row_costs,
                table=start,
                capacity=10,
                confirm_rows=confirm,
                num_standard_errors=ratio * factor,
            )
            assert again.confirmation is not None
            assert again.confirmation.accepted is (factor < 1)

    def test_a_gain_that_does_not_show_is_given_up(self) -> None:
        rejected = 0
        for seed in range(10):
            rng = np.random.default_rng(seed)
            ids, row_costs = rng.integers(30, size=200), rng.normal(size=(200, 3))
            start = np.arange(30) % 3
            options: Any = {"table": start, "confirm_rows": np.arange(100)}
            result = assign_ids(ids, row_costs, **options, num_standard_errors=2.0)
            assert result.confirmation is not None
            if result.confirmation.accepted:
                continue
            rejected += 1
            assert result.stop_reason is StopReason.NOT_CONFIRMED
            np.testing.assert_array_equal(result.table, start)
            assert (result.num_moved, result.cost_after) == (0, result.cost_before)
            assert result.standard_error == 0
        assert rejected >= 9  # by chance 2.3 % are accepted

    def test_the_search_sees_nothing_of_the_rows_that_confirm(self) -> None:
        ids, row_costs, start = self.planted()
        confirm = np.random.default_rng(1).permutation(400)[:150]
        mask = np.isin(np.arange(400), confirm)
        expected = assign_ids(ids[~mask], row_costs[~mask], table=start)
        tables = []
        for rows in (confirm, mask):
            result = assign_ids(ids, row_costs, table=start, confirm_rows=rows)
            tables.append(result.table)
            assert result.cost_before == pytest.approx(expected.cost_before)
            assert result.cost_after == pytest.approx(expected.cost_after)
        np.testing.assert_array_equal(tables, [expected.table] * 2)

    def test_an_optimal_start_has_nothing_to_confirm(self) -> None:
        ids, row_costs, start = self.planted()
        best = assign_ids(ids[:200], row_costs[:200], table=start).table
        result = assign_ids(ids, row_costs, table=best, confirm_rows=np.arange(200, 400))
        np.testing.assert_array_equal(result.table, best)
        assert result.stop_reason is StopReason.OPTIMUM
        assert result.confirmation is not None
        assert result.confirmation[2:] == (0.0, 0.0, False, 0)

    def test_one_row_confirms_nothing(self) -> None:
        ids, row_costs, start = self.planted()
        result = assign_ids(ids, row_costs, table=start, confirm_rows=[7], num_standard_errors=0.0)
        assert result.stop_reason is StopReason.NOT_CONFIRMED


def test_a_table_a_task_is_at_least_as_good_as_one_that_tasks_share() -> None:
    rng = np.random.default_rng(0)
    ids, start = rng.integers(12, size=300), np.arange(12) % 3
    tasks = rng.normal(size=(2, 300, 3))
    weights = np.array([0.9, 0.1])
    alone = [assign_ids(ids, costs, table=start) for costs in tasks]
    shared = assign_ids(ids, np.tensordot(weights, tasks, axes=1), table=start)
    of_shared = [mean_cost(ids, costs, shared.table) for costs in tasks]
    assert shared.cost_after == pytest.approx(weights @ of_shared)
    of_alone = np.array([result.cost_after for result in alone])
    assert np.all(of_alone <= of_shared)
    assert weights @ of_alone < shared.cost_after < shared.cost_before


def test_runs_repeat_and_leave_the_inputs_alone() -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(9, size=50), rng.normal(size=(50, 3)), np.arange(9) % 3
    copies = [array.copy() for array in arrays]
    ids, row_costs, start = arrays
    first, second = (assign_ids(ids, row_costs, table=start) for _ in range(2))
    np.testing.assert_array_equal(first.table, second.table)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_result_is_a_table_of_its_own_whatever_the_integers_given() -> None:
    rng = np.random.default_rng(0)
    ids, row_costs = rng.integers(9, size=50).astype(np.uint8), rng.normal(size=(50, 3))
    for dtype in (np.int64, np.uint8, np.int32):
        start = (np.arange(9) % 3).astype(dtype)
        for confirm_rows in (None, [0]):  # one row confirms nothing: the start is returned
            result = assign_ids(ids, row_costs, table=start, confirm_rows=confirm_rows)
            assert result.table.dtype == np.int64
            result.table[:] = 0
            np.testing.assert_array_equal(start, np.arange(9) % 3)


class TestBadArguments:
    def run(self, **change: Any) -> IdAssignment:
        options: Any = {"ids": [0, 1, 1], "row_costs": np.zeros((3, 2)), "table": [0, 1]} | change
        return assign_ids(options.pop("ids"), options.pop("row_costs"), **options)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": [0, 1]}, r"`ids` must have shape \(T=3,\), got \(2,\)"),
            ({"ids": [[0, 1, 1]]}, r"`ids` must have shape \(T=3,\), got \(1, 3\)"),
            ({"ids": [0, 1, 2]}, r"`ids` must be in \[0, 2\), got 2"),
            ({"ids": [0, -1, 1]}, r"`ids` must be in \[0, 2\), got -1"),
            ({"table": [0, 2]}, r"`table` must be in \[0, 2\), got 2"),
            ({"table": [[0, 1]]}, r"`table` must have shape \(N,\), got \(1, 2\)"),
            ({"row_costs": np.zeros(3)}, r"`row_costs` must have shape \(T, E\), got \(3,\)"),
            (
                {"row_costs": np.full((3, 2), np.nan)},
                r"`row_costs` must be finite, got nan at \[0, 0\]",
            ),
            ({"capacity": [1, 0]}, "`capacity` must have room for all N=2"),
            ({"capacity": [2, -1]}, "`capacity` must be >= 0, got -1"),
            ({"capacity": [1, 1, 1]}, r"`capacity` must have shape \(E=2\), got \(3,\)"),
            (
                {"capacity": 1, "table": [0, 0]},
                "`table` must respect `capacity`, 1 for expert 0, got 2 ids there",
            ),
            ({"move_standard_errors": -1.0}, "`move_standard_errors` must be finite and >= 0"),
            ({"num_standard_errors": np.inf}, "`num_standard_errors` must be finite .* got inf"),
            ({"confirm_rows": [0, 1, 2]}, "`confirm_rows` must leave rows to search, got all T=3"),
            ({"confirm_rows": []}, "`confirm_rows` must select at least one of T=3 rows"),
            ({"confirm_rows": [3]}, r"`confirm_rows` must be in \[0, T=3\), got 3"),
            ({"confirm_rows": [1, 1]}, "`confirm_rows` must be distinct, got 1"),
        ],
    )
    def test_values(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.run(**change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ids": [0.0, 1.0, 1.0]}, "`ids` must hold integers, got dtype float64"),
            ({"table": [0.0, 1.0]}, "`table` must hold integers, got dtype float64"),
            ({"row_costs": [["a", "b"]] * 3}, "`row_costs` must hold real numbers"),
            ({"capacity": 1.5}, "`capacity` must hold integers, got dtype float64"),
            ({"move_standard_errors": "1"}, "`move_standard_errors` must be a real number"),
            ({"num_standard_errors": True}, "`num_standard_errors` must be a real number"),
        ],
    )
    def test_types(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(TypeError, match=message):
            self.run(**change)

    def test_no_rows(self) -> None:
        with pytest.raises(ValueError, match="`row_costs` must have T >= 1 rows"):
            self.run(ids=np.zeros(0, dtype=np.int64), row_costs=np.zeros((0, 2)))

    def test_no_experts(self) -> None:
        empty = np.zeros(0, dtype=np.int64)
        with pytest.raises(ValueError, match="`row_costs` must have T >= 1 rows and E >= 1"):
            self.run(ids=empty, row_costs=np.zeros((0, 0)), table=empty)
