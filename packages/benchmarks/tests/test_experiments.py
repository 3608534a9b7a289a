import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _synthetic import pictures, ratings, tiny

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS, Experiment
from moe_benchmarks._experiments._gates import GATES, PAPER_GATES
from moe_benchmarks._experiments._loop import fit
from moe_benchmarks._experiments._metrics import validate
from moe_benchmarks._experiments._model import build_model
from moe_benchmarks._experiments._row import Row, run_trial
from moe_benchmarks._experiments._run import DivergedError, Epoch
from moe_benchmarks._experiments._search_names import SEARCHES
from moe_benchmarks._experiments._searches import search_epoch
from moe_localsearch import paper_schedule, sinkhorn
from moe_runtime import HashRouter, Router

RATINGS = replace(
    EXPERIMENTS["movielens-1m"], embedding_width=8, expert_widths=(8,), head_widths=(8,)
)
PICTURES = replace(EXPERIMENTS["multi-mnist"], expert_widths=(8, 8), head_widths=(8,))
VARIANTS = [(gate, "identity") for gate in GATES] + [
    (gate, search)
    for gate in PAPER_GATES
    for search in SEARCHES
    if search != "identity" and (search != "ids" or gate == "hash")
]
OTHERS = sorted(set(GATES) - set(PAPER_GATES))
MIXED = [(gate, search) for gate in OTHERS for search in ("relaxed", "soft-mix")]


class StopError(Exception):
    """Stands for whatever ends a process."""


def same_numbers(row: Row) -> Row:
    """Return a row without its times, which differ from run to run."""
    kept = {
        name: value for name, value in row.items() if name not in ("seconds", "rows_per_second")
    }
    epochs = [
        {name: value for name, value in epoch.items() if name != "seconds"}
        for epoch in row.get("history", [])
    ]
    return {**kept, "history": epochs}


@pytest.mark.parametrize(("gate", "search"), MIXED)
def test_every_other_gate_can_be_mixed_where_rows_have_no_expert(gate: str, search: str) -> None:
    size = {"num_experts": 2, "k": 1} if gate == "relu" else {}
    settings = tiny(gate, search, epochs=2, **size)
    row, _ = run_trial(RATINGS, settings, ratings(), share=1.0)
    assert math.isfinite(row["history"][-1]["train_loss"])


@pytest.mark.parametrize(("gate", "search"), VARIANTS)
def test_every_gate_trains_with_every_search(gate: str, search: str) -> None:
    settings = tiny(gate, search, epochs=3, search_rows=60)
    row, _ = run_trial(RATINGS, settings, ratings(), share=1.0)
    assert row["metrics"]["test"]["hard"]["most_experts"] <= settings.k
    assert [len(load) for load in row["load"]] == [settings.num_experts] * 2
    assert (row["searches"] != []) == (search in ("exact", "exact-shared", "ids"))
    assert row["history"][-1]["train_loss"] < row["history"][0]["train_loss"]


@pytest.mark.parametrize(
    ("gate", "search"), [("comet", "exact"), ("dselect-k", "relaxed"), ("hash", "ids")]
)
@pytest.mark.parametrize(
    ("experiment", "data"), [(RATINGS, ratings), (PICTURES, pictures)], ids=["ids", "pictures"]
)
def test_the_same_seed_gives_the_same_row(
    experiment: Experiment, data: Callable[[], Dataset], gate: str, search: str
) -> None:
    settings = tiny(gate, search, epochs=3, search_rows=60)
    rows = [run_trial(experiment, settings, data(), share=1.0)[0] for _ in range(2)]
    assert same_numbers(rows[0]) == same_numbers(rows[1])


@pytest.mark.parametrize("search", ["identity", "relaxed", "exact"])
def test_an_interrupted_run_ends_with_the_same_numbers(search: str, tmp_path: Path) -> None:
    settings, data = tiny("comet", search), ratings()
    moments = {0, 2}

    def stop(number: int, _epoch: Epoch) -> None:
        if number in moments:
            moments.remove(number)
            raise StopError

    whole, _ = run_trial(RATINGS, settings, data, share=1.0)
    path = tmp_path / "checkpoint"
    while moments:
        with pytest.raises(StopError):
            fit(RATINGS, settings, data, checkpoint=path, on_epoch=stop)
    parts, _ = run_trial(RATINGS, settings, data, share=1.0, checkpoint=path)
    assert same_numbers(parts) == same_numbers(whole)


def test_training_stops_after_patience_and_returns_the_best_epoch() -> None:
    settings, data = tiny("top-k", epochs=60, patience=2, learning_rate=0.05), ratings()
    trained = fit(RATINGS, settings, data)
    losses = [epoch.validation_loss for epoch in trained.history]
    assert len(losses) < 60
    assert len(losses) - 1 - trained.best_epoch == 2
    found = validate(trained.model, data.validation, data.tasks, settings.task_weights)
    assert found.loss == pytest.approx(min(losses), abs=1e-6)
    assert losses[0] > 1.2 * min(losses)


def test_validation_counts_what_each_task_uses() -> None:
    data, settings = ratings(), tiny("hash", num_experts=5)
    model = build_model(RATINGS, settings, data, steps_per_epoch=1)
    first, second = model.mixture.routers
    assert isinstance(first, HashRouter)
    assert isinstance(second, HashRouter)
    first.table.fill_(3)
    second.table.copy_(torch.arange(30) % 2)
    found = validate(model, data.validation, data.tasks, settings.task_weights)
    odd = (data.validation.inputs["item"] % 2).double().mean().item()
    assert found.dead_experts == [4, 3]
    assert found.largest_load == pytest.approx([1, max(odd, 1 - odd)])
    assert (found.experts_per_row, found.union_per_row) == (1, 2)


def test_a_loss_that_is_not_finite_is_said() -> None:
    # One step, so that no later batch meets weights that are not finite.
    with pytest.raises(DivergedError, match="epoch 1 is not finite"):
        fit(RATINGS, tiny("hash", learning_rate=1e30, batch_size=600), ratings())


@pytest.mark.parametrize("search", ["random", "relaxed", "exact"])
def test_a_search_leaves_the_initial_values_as_they_are(search: str) -> None:
    plain, other = (
        build_model(RATINGS, tiny("comet", each), ratings(), steps_per_epoch=10)
        for each in ("identity", search)
    )
    values = {
        name.replace("inner.", ""): value
        for name, value in other.named_parameters()
        if not name.startswith("soft.")
    }
    for name, value in plain.named_parameters():
        assert torch.equal(value, values[name]), name


@pytest.mark.parametrize("gate", ["comet", "dselect-k", "top-k"])
def test_the_relaxed_permutation_mixes_in_training_and_relabels_otherwise(gate: str) -> None:
    data = ratings()
    model = build_model(RATINGS, tiny(gate, "relaxed"), data, steps_per_epoch=10)
    plain = build_model(RATINGS, tiny(gate), data, steps_per_epoch=10)
    soft = model.soft
    assert soft is not None
    inputs = data.validation.inputs
    model.eval()
    plain.eval()
    before_GTE = plain(inputs).weights_GTE
    relabelled_GTE = model(inputs).weights_GTE
    # Position i stands for expert permutation[i].
    torch.testing.assert_close(relabelled_GTE[..., soft.permutation()], before_GTE)
    model.train()
    temperature, iterations = paper_schedule(0, soft.relaxation.num_steps)
    matrix = sinkhorn(
        soft.log_weights.detach(), temperature=temperature, num_iterations=iterations
    ).matrix
    expected = before_GTE @ matrix
    if gate != "dselect-k":  # as published, its weights are not normalised
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(model(inputs).weights_GTE, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("search", ["relaxed", "soft-mix"])
def test_the_relaxed_permutation_is_frozen_after_its_epochs(search: str) -> None:
    trained = fit(RATINGS, tiny("comet", search, epochs=3, search_epochs=1), ratings())
    soft = trained.model.soft
    assert soft is not None
    identity = torch.arange(5)
    for router in trained.model.mixture.routers:
        assert isinstance(router, Router)
        learned = soft.permutation() if search == "relaxed" else identity
        assert torch.equal(router.permutation, learned.expand(2, -1)), "one for all trees"
    assert trained.best_epoch > 0
    assert bool(soft.frozen)


def test_ids_are_assigned_a_task_and_lower_its_loss() -> None:
    data, settings = ratings(4000), tiny("hash", "ids", search_rows=4000)
    model = fit(RATINGS, replace(settings, search="identity", epochs=6), data).model
    rows = torch.arange(4000)
    found = search_epoch(model, settings, data.train, data.tasks, rows, epoch=1)
    assert [each.task for each in found] == ["watched", "rating"]
    assert any(each.accepted and each.num_moved for each in found)
    assert all(each.cost_after <= each.cost_before for each in found)
    tables = []
    for router in model.mixture.routers:
        assert isinstance(router, HashRouter)
        tables.append(router.table)
    assert not torch.equal(tables[0], tables[1])


def test_a_row_that_does_not_count_in_a_task_has_no_part_in_it() -> None:
    data, settings = ratings(), tiny("top-k", epochs=1)
    rating, present = data.train.targets[1], data.train.present[1]
    assert present is not None
    # What stands where there is no rating must not matter.
    wild = replace(data.train, targets=(data.train.targets[0], torch.where(present, rating, 1e6)))
    one, other = (
        fit(RATINGS, settings, replace(data, train=train)).history[0].train_loss
        for train in (data.train, wild)
    )
    assert one == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate": "best"}, "`gate` must be one of"),
        ({"search": "ids"}, "'ids' is for the gate 'hash' only"),
        ({"k": 6}, r"`k` must be in \[1, num_experts=5\], got 6"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number"),
        ({"learning_rate": 0.0}, "`learning_rate` must be > 0, got 0.0"),
        ({"epochs": True}, "`epochs` must be an integer, got True"),
        ({"task_weights": (0.0, 0.0)}, "`task_weights` must be > 0 for some task"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)  # type: ignore[arg-type]
