"""Runs that are trained together come to the numbers that each comes to alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from _synthetic import pictures, ratings, tiny

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS, Experiment
from moe_benchmarks._experiments._gates import GATES, PAPER_GATES
from moe_benchmarks._experiments._loop import fit
from moe_benchmarks._experiments._run import DivergedError, Epoch, Run, Trained
from moe_benchmarks._experiments._search_names import SEARCHES
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._experiments._stack import StackedRun, train_together

# With dropout, which draws for each run what it would draw alone.
RATINGS = replace(
    EXPERIMENTS["movielens-1m"], embedding_width=8, expert_widths=(8,), head_widths=(8,)
)
PICTURES = replace(EXPERIMENTS["multi-mnist"], expert_widths=(8, 8), head_widths=(8,))
VARIANTS = [(gate, "identity") for gate in GATES if not GATES[gate].draws] + [
    (gate, search)
    for gate in PAPER_GATES
    for search in SEARCHES
    if search != "identity" and (search != "ids" or gate == "hash")
]
# All that may differ between the trials of a variant.
DIFFERENT: list[dict[str, object]] = [
    {"seed": 0, "learning_rate": 3e-3, "gamma": 1.0, "entropy_weight": 0.1, "search_epochs": 1},
    {"seed": 5, "learning_rate": 3e-2, "gamma": 0.1, "entropy_weight": 0.0, "search_epochs": 2},
    {"seed": 9, "learning_rate": 1e-3, "gamma": 0.5, "entropy_weight": 1.0, "search_epochs": 3},
]


def train_stack(
    experiment: Experiment, settings: Sequence[TrialSettings], data: Dataset, *, late: int = 0
) -> list[Trained]:
    """Train runs together; the first joins the others `late` epochs after them."""
    runs = [StackedRun(Run(experiment, each, data)) for each in settings]
    epoch = 0
    while not all(each.run.is_over for each in runs):
        here = runs if epoch >= late else runs[1:]
        some = [each for each in here if not each.run.is_over]
        orders = [each.run.begin_epoch() for each in some]
        for each, trained in zip(some, train_together(some, orders), strict=True):
            each.end_epoch(trained)
        epoch += 1
    return [each.run.trained() for each in runs]


def assert_same(found: Trained, wanted: Trained) -> None:
    """Compare two runs, up to the order of sums in float32."""
    assert len(found.history) == len(wanted.history)
    for here, there in zip(found.history, wanted.history, strict=True):
        assert losses(here) == pytest.approx(losses(there), rel=1e-4, abs=1e-5)
        # A few rows of hundreds are at the edge of a smooth step's band.
        assert here.experts_per_row == pytest.approx(there.experts_per_row, abs=0.03)
    assert found.best_epoch == wanted.best_epoch
    for ours, theirs in zip(found.searches, wanted.searches, strict=True):
        assert (ours.epoch, ours.task, ours.accepted) == (
            theirs.epoch,
            theirs.task,
            theirs.accepted,
        )
        assert ours.cost_before == pytest.approx(theirs.cost_before, rel=1e-4)
        assert ours.num_moved == theirs.num_moved
    # Not parameter by parameter: Adam takes a whole step along a gradient that is all rounding.
    buffers = dict(found.model.named_buffers())
    for name, buffer in wanted.model.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def losses(epoch: Epoch) -> list[float]:
    """Return what an epoch came to."""
    return [epoch.train_loss, epoch.penalty, epoch.validation_loss]


@pytest.mark.parametrize(
    ("experiment", "data", "gate", "search"),
    [(RATINGS, ratings, *variant) for variant in VARIANTS]
    + [
        (PICTURES, pictures, *variant)
        for variant in [("comet", "exact"), ("hash", "ids"), ("dselect-k", "relaxed")]
    ],
)
def test_runs_of_a_stack_come_to_the_numbers_of_each_alone(
    experiment: Experiment, data: Callable[[], Dataset], gate: str, search: str
) -> None:
    settings = [
        tiny(gate, search, epochs=4, search_rows=60, patience=2, **each) for each in DIFFERENT
    ]
    found = train_stack(experiment, settings, data())
    for each, trained in zip(settings, found, strict=True):
        assert_same(trained, fit(experiment, each, data()))


@pytest.mark.parametrize("search", ["identity", "relaxed", "exact"])
def test_a_run_may_join_late_and_leave_early(search: str) -> None:
    data = ratings(601)  # the last batch has 25 rows
    settings = [
        tiny("comet", search, epochs=epochs, **each)
        for epochs, each in zip((5, 3, 6), DIFFERENT, strict=True)
    ]
    found = train_stack(RATINGS, settings, data, late=2)
    for each, trained in zip(settings, found, strict=True):
        assert_same(trained, fit(RATINGS, each, data))


@pytest.mark.parametrize("search", ["identity", "relaxed"])
def test_a_run_that_diverges_leaves_the_others_as_they_are(search: str) -> None:
    # The relaxed permutation of which is frozen after the epoch, too.
    data, settings = ratings(), tiny("comet", search, epochs=1, search_epochs=1)
    runs = [
        StackedRun(Run(RATINGS, each, data))
        for each in (replace(settings, learning_rate=1e30, seed=3), settings)
    ]
    wild, steady = train_together(runs, [each.run.begin_epoch() for each in runs])
    with pytest.raises((DivergedError, ValueError), match="finite"):
        runs[0].end_epoch(wild)
    runs[1].end_epoch(steady)
    assert_same(runs[1].run.trained(), fit(RATINGS, settings, data))


def test_time_is_shared_out() -> None:
    runs = [StackedRun(Run(RATINGS, tiny("hash", seed=seed), ratings())) for seed in range(4)]
    trained = train_together(runs, [each.run.begin_epoch() for each in runs])
    assert len({epoch.seconds for epoch in trained}) == 1
    assert trained[0].seconds > 0
