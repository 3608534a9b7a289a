import itertools
import math
from typing import Any

import numpy as np
import pytest
from _rows import failed, study, trial
from numpy.typing import NDArray

from moe_benchmarks._bootstrap import Floats
from moe_benchmarks._differences import are_paired, difference, paired_difference
from moe_benchmarks._statistics import (
    best_of,
    losses,
    share_size,
    speedup,
    top_share,
    trials_needed,
)

# Validation and test losses of few trials; the validation losses tie.
FEW = [(0.5, 0.7), (0.4, 0.9), (0.4, 0.6), (0.8, 0.1)]


def few() -> list[dict[str, Any]]:
    return [trial(number, *pair) for number, pair in enumerate(FEW)]


def distinct(rows: list[dict[str, Any]], offset: int) -> list[dict[str, Any]]:
    """Give trials seeds of their own, so that they pair with no others."""
    for row in rows:
        row["settings"]["seed"] += offset
    return rows


def expected_best(values: Floats, num_draws: NDArray[np.int64]) -> Floats:
    """Return the exact expectation of the smallest of N values drawn with replacement."""
    size = len(values)
    at_least = (1 - np.arange(size + 1) / size)[None, :] ** num_draws[:, None]
    # The i-th smallest is the smallest drawn if all are at least it, and not all above it.
    chance = at_least[:, :-1] - at_least[:, 1:]
    return np.asarray(np.sum(chance * np.sort(values)[None, :], axis=1), dtype=np.float64)


@pytest.mark.parametrize(
    ("num_complete", "share", "size"),
    [(0, 0.05, 1), (1, 0.05, 1), (20, 0.05, 1), (21, 0.05, 2), (140, 0.05, 7), (500, 0.05, 25)],
)
def test_a_share_is_rounded_up_to_whole_trials(num_complete: int, share: float, size: int) -> None:
    assert share_size(num_complete, share) == size


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"`share` must be in \(0, 1\]"):
        top_share(few(), share)


def test_the_top_share_is_chosen_by_validation_loss_and_a_tie_keeps_the_order() -> None:
    top = top_share([*few(), failed(4)], 0.5)
    assert [row["trial"] for row in top.rows] == [1, 2]
    assert top.num_complete == 4
    assert top.mean == pytest.approx(0.75)
    assert top.standard_error == pytest.approx(np.std([0.9, 0.6], ddof=1) / math.sqrt(2))


def test_the_top_of_failed_trials_is_empty_and_infinite() -> None:
    top = top_share([failed(0), failed(1)])
    assert (top.rows, top.num_complete, top.mean) == ([], 0, math.inf)
    assert top.standard_error is None


def test_hard_routing_is_compared_on_the_trials_chosen_as_trained() -> None:
    trained, hard = top_share(few(), 0.5), top_share(few(), 0.5, routing="hard")
    assert trained.rows == hard.rows
    assert hard.mean == pytest.approx(trained.mean + 0.002)


@pytest.mark.parametrize("num_draws", [1, 2, 3])
def test_the_expected_best_is_that_of_all_draws(num_draws: int) -> None:
    values = np.asarray([0.5, 0.4, 0.4, 0.8])
    every = [min(draw) for draw in itertools.product(values, repeat=num_draws)]
    expected = expected_best(values, np.asarray([num_draws]))
    np.testing.assert_allclose(expected, np.mean(every), rtol=1e-12)


def test_the_bootstrap_agrees_with_the_exact_expectation() -> None:
    values = losses(study(12), "validation")
    # The trials' test loss is their validation loss, so the best of N is the smallest of N.
    rows = [trial(number, value, value) for number, value in enumerate(values)]
    exact = expected_best(values, np.arange(1, 13))
    draws = np.random.default_rng(1).integers(12, size=(20_000, 12))
    smallest = np.minimum.accumulate(values[draws], axis=1)
    # Four standard errors of a mean of 20,000.
    tolerance = 4 * values.std() / math.sqrt(20_000)
    np.testing.assert_allclose(smallest.mean(axis=0), exact, atol=tolerance)
    median = best_of(rows, resamples=20_000).median
    # The exact median is the smallest value that at least half of the draws do not exceed.
    ordered = np.sort(values)
    at_most = 1 - (1 - np.arange(1, 13) / 12)[:, None] ** np.arange(1, 13)
    # At one draw the share of the draws is exactly a half at the sixth: either side is a median.
    exact_median = ordered[np.argmax(at_most >= 0.5, axis=0)]
    np.testing.assert_allclose(median[1:], exact_median[1:], rtol=1e-12)


def test_the_best_of_more_trials_is_no_worse_where_test_and_validation_agree() -> None:
    rows = [trial(number, loss, loss) for number, loss in enumerate(np.linspace(0.9, 0.5, 30))]
    curve = best_of([*rows, failed(30)])
    assert len(curve.median) == 31
    for values in (curve.low, curve.median, curve.high):
        assert np.all(values[1:] <= values[:-1])
    assert np.all(curve.low <= curve.median)
    assert np.all(curve.median <= curve.high)


def test_the_best_of_failed_trials_is_infinite() -> None:
    curve = best_of([failed(0), failed(1), trial(2, 0.5, 0.6)])
    assert curve.median[0] == math.inf
    assert curve.median[2] == pytest.approx(0.6)
    assert np.all(np.isinf(best_of([failed(0)]).median))


@pytest.mark.parametrize(("loss", "needed"), [(0.39, math.inf), (0.4, 1), (0.8, 1)])
def test_trials_needed_counts_ties_as_reached(loss: float, needed: float) -> None:
    assert trials_needed(few(), loss).value == needed


def test_trials_needed_is_the_smallest_number_whose_median_reaches_the_loss() -> None:
    rows = study(37)
    values = np.sort(losses(rows, "validation"))
    for place in (0, 1, 5, 20):
        needed = trials_needed(rows, values[place]).value
        misses = 1 - (place + 1) / 37
        assert misses**needed <= 0.5 < misses ** (needed - 1)


def test_trials_needed_falls_with_the_loss_and_lies_in_its_interval() -> None:
    rows = [*study(40), failed(40)]
    found = [trials_needed(rows, loss) for loss in (0.61, 0.63, 0.66)]
    assert found[0].value >= found[1].value >= found[2].value
    for each in found:
        assert each.low <= each.value <= each.high


def test_a_loss_that_no_trial_reached_may_still_be_near() -> None:
    found = trials_needed(study(40), 0.1)
    assert found.value == found.high == math.inf
    # A share of 1 - 0.025**(1 / 40) = 8.8 % is missed by 40 trials in 1 study of 40.
    assert found.low == 8


def test_a_variant_needs_as_many_trials_as_itself() -> None:
    rows = study(30)
    found = speedup(rows, rows)
    assert found.ratio.value == 1
    assert found.loss == losses(rows, "validation").min()


def test_a_search_that_reaches_the_loss_at_once_saves_all_trials_but_one() -> None:
    found = speedup(study(40), study(40, mean=0.4))
    assert found.searched.value == 1
    assert found.ratio.value == found.without.value == 28
    assert found.ratio.low > 1


def test_a_search_that_never_reaches_the_loss_is_no_faster() -> None:
    found = speedup(study(40, mean=0.4), [*study(39), failed(39)])
    assert found.searched.value == math.inf
    assert found.ratio.value == 0
    assert 0 < found.ratio.high < 28


def test_a_search_that_is_much_worse_is_not_shown_to_be_slower() -> None:
    found = speedup(study(30), distinct(study(30, mean=0.9, seed=1), 1000))
    assert found.ratio.value == 0
    assert found.ratio.high > 1


def test_a_speedup_needs_a_loss_to_reach() -> None:
    with pytest.raises(ValueError, match="must hold a complete trial"):
        speedup([failed(0)], few())


def test_trials_pair_by_number_seed_and_learning_rate() -> None:
    assert are_paired(study(5), study(5, seed=1)[::-1])
    assert not are_paired(study(5), study(6))
    assert not are_paired(study(5), distinct(study(5), 1))


def test_a_variant_does_not_differ_from_itself() -> None:
    rows = study(20)
    gap = difference(rows, rows)
    assert tuple(gap) == (0, 0, 0, 1, 20)
    assert not gap.is_apart


def test_a_difference_changes_its_sign_with_the_order() -> None:
    rows, others = study(20), study(20, mean=0.63, seed=1)
    there, back = difference(rows, others), difference(others, rows)
    assert there.value == -back.value
    assert there.chance == pytest.approx(back.chance)
    np.testing.assert_allclose([there.low, there.high], [-back.high, -back.low], atol=1e-3)


@pytest.mark.parametrize("offset", [0, 1000])
def test_a_large_difference_is_apart(offset: int) -> None:
    gap = difference(study(30), distinct(study(30, mean=0.7, seed=1), offset))
    assert gap.is_apart
    assert gap.high < 0
    assert gap.num_pairs == (30 if offset == 0 else 0)


def test_three_trials_show_no_winner_however_far_apart() -> None:
    gap = difference(study(3), distinct(study(3, mean=5.0), 1000))
    assert gap.excludes_zero
    assert not gap.is_apart


def test_failed_trials_make_a_variant_worse_and_not_absent() -> None:
    complete, broken = study(20), [failed(number) for number in range(20)]
    assert difference(complete, broken).value == -math.inf
    assert difference(broken, broken).value == 0
    assert difference([*complete[:10], *broken[10:]], complete).low < 1


def test_pairs_remove_what_trials_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.uniform(0.5, 1.5, size=30)
    noise = rng.normal(0, 0.001, size=30)
    rows = [trial(number, loss, loss) for number, loss in enumerate(shared)]
    others = [trial(number, loss, loss) for number, loss in enumerate(shared - 0.01 + noise)]
    gap = paired_difference([*rows, trial(30, 0.5)], [*others, failed(30)])
    assert gap is not None
    assert gap.num_pairs == 30
    assert gap.is_apart
    assert gap.value == pytest.approx(0.01, abs=0.001)
    assert paired_difference(rows, distinct(others, 1000)) is None


@pytest.mark.parametrize("num_trials", [5, 30])
def test_equal_variants_are_seldom_apart(num_trials: int) -> None:
    apart = faster = 0
    num_studies = 100
    for number in range(num_studies):
        rows = study(num_trials, seed=2 * number)
        others = distinct(study(num_trials, seed=2 * number + 1), 1000)
        apart += difference(rows, others, resamples=300).is_apart
        faster += speedup(rows, others, resamples=300).ratio.low > 1
    # 5 % and 2.5 % are meant; 11 of 100 at 5 % is an accident of 1 %.
    assert apart <= 11
    assert faster <= 8


def test_the_interval_of_trials_needed_covers_the_truth() -> None:
    # Exponential losses: the share at most 0.05 is 1 - exp(-0.05), so 14 draws are needed.
    truth = math.ceil(math.log(2) / 0.05)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        rows = [trial(number, loss) for number, loss in enumerate(rng.exponential(size=60))]
        found = trials_needed(rows, 0.05, resamples=300)
        covered += found.low <= truth <= found.high
    # 95 are meant; with 3 of 60 trials expected to reach it, resamples know it less well.
    assert covered >= 85
