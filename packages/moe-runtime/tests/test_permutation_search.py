"""Searches beside training come when they are due, disturb nothing, and resume to the bit."""

import copy
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _reference import DIM, ROUTERS, awake, make_mixture, router_of
from torch import Tensor, nn

from moe_runtime import (
    Experts,
    MixtureOfExperts,
    MultiGateMixtureOfExperts,
    PermutationSearch,
    SearchRecord,
    SearchRows,
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    training_tensors,
)

NUM_ROWS, BATCH = 200, 20


class Classifier(nn.Module):
    """A mixture in the middle of a model that has dropout, normalisation and a residual."""

    def __init__(self, num_gates: int = 1) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Linear(3, DIM), nn.BatchNorm1d(DIM), nn.Dropout(0.5))
        routers = [awake(ROUTERS["comet"](5, 2)) for _ in range(num_gates)]
        experts = Experts(5, (DIM, 7, DIM))
        self.mixture = MultiGateMixtureOfExperts(routers, experts)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(DIM, 2)

    def upper(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(hidden + mixed))
        return logits

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.lower(x)
        mixed, penalty, _ = self.mixture(hidden)
        return self.upper(hidden, mixed[0]), penalty


def rows_of(model: Classifier) -> Callable[[int], SearchRows]:
    """Rows that depend on nothing but the step and the model."""

    def rows(step: int) -> SearchRows:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(NUM_ROWS, 3, generator=generator)
        targets = (x[:, 0] > 0).long()
        hidden = model.lower(x)

        def row_loss(output: Tensor, some: Tensor) -> Tensor:
            logits = model.upper(hidden[some], output)
            return nn.functional.cross_entropy(logits, targets[some], reduction="none")

        return SearchRows(hidden, [row_loss] * len(model.mixture.routers))

    return rows


class Training:
    """A run whose batches depend on the step, and whose dropout on torch's random numbers."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = Classifier()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        given = {"every": 3, "max_share": None, "move_standard_errors": 0.0, **options}
        given["num_standard_errors"] = 0.0
        self.search = PermutationSearch(
            self.model.mixture, rows_of(self.model), model=self.model, **given
        )

    def step(self, step: int) -> list[SearchRecord]:
        torch.manual_seed(step)
        x = torch.randn(BATCH, 3)
        logits, penalty = self.model(x)
        loss = nn.functional.cross_entropy(logits, (x[:, 0] > 0).long()) + penalty
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self.search.step(BATCH)

    def tensors(self) -> dict[str, Tensor]:
        others = {"search": self.search}
        return copy.deepcopy(training_tensors(self.model, self.optimizer, others))


def without_seconds(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: each for name, each in tensors.items() if "seconds" not in name}
    kept["search.records"] = kept["search.records"][:, :-1]
    return kept


@pytest.mark.parametrize(
    ("max_share", "searched"),
    [(None, [3, 6]), (110.0, [6])],
    ids=["always", "waiting"],
)
def test_a_run_interrupted_at_any_step_equals_an_uninterrupted_one(
    tmp_path: Path, max_share: float | None, searched: list[int]
) -> None:
    num_steps = 7
    whole, states = Training(max_share=max_share), []
    for step in range(num_steps):
        states.append(whole.tensors())
        whole.step(step)
    assert [record.step for record in whole.search.records] == searched
    assert max_share is not None or any(record.accepted for record in whole.search.records)
    expected = without_seconds(whole.tensors())
    for stopped, state in enumerate(states):
        save_checkpoint(tmp_path / "run", state)
        run = Training(max_share=max_share)
        tensors = load_checkpoint(tmp_path / "run").tensors
        load_training_tensors(run.model, run.optimizer, tensors, {"search": run.search})
        for step in range(stopped, num_steps):
            run.step(step)
        ours = without_seconds(run.tensors())
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in ours), stopped


def test_a_search_changes_permutations_and_nothing_else() -> None:
    run = Training()
    for step in range(2):
        run.step(step)
    run.model.train()
    run.model.lower.eval()
    modes = [each.training for each in run.model.modules()]
    before = run.tensors()
    parameters = [each for each in run.model.parameters() if each.grad is not None]
    gradients = [copy.deepcopy(each.grad) for each in parameters]
    random = torch.get_rng_state()
    with torch.autocast("cpu"):
        (record,) = run.search.step(BATCH)
        assert torch.is_autocast_enabled("cpu")
    assert record.accepted
    assert torch.equal(torch.get_rng_state(), random)
    assert [each.training for each in run.model.modules()] == modes
    assert torch.is_grad_enabled()
    after = run.tensors()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if not name.startswith("search.")} == {
        "model.mixture.routers.0.permutation"
    }
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)


def test_everything_is_restored_where_the_loss_fails() -> None:
    model = Classifier()
    modes = [each.training for each in model.modules()]
    assert any(modes)
    random = torch.get_rng_state()

    def rows(_step: int) -> SearchRows:
        torch.rand(3)
        assert not model.dropout.training
        assert not torch.is_grad_enabled()
        msg = "no rows"
        raise RuntimeError(msg)

    search = PermutationSearch(model.mixture, rows, every=1, model=model)
    with pytest.raises(RuntimeError, match="no rows"):
        search.step(BATCH)
    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_searches_come_every_so_many_steps_and_say_what_they_gained() -> None:
    run = Training()
    found = {step + 1: run.step(step) for step in range(7)}
    assert [step for step, records in found.items() if records] == [3, 6]
    assert run.search.records == (*found[3], *found[6])
    for step in (3, 6):
        (record,) = found[step]
        assert (record.step, record.gate) == (step, 0)
        assert record.cost_after <= record.cost_before
        assert record.gain == pytest.approx(
            record.confirm_cost_before - record.confirm_cost_after, abs=1e-6
        )
        assert record.standard_error > 0
        assert record.accepted == (record.num_moved > 0)


def test_the_gain_is_what_the_model_gains_on_the_rows_that_confirm() -> None:
    run = Training()
    for step in range(2):
        run.step(step)
    rows = rows_of(run.model)
    run.model.eval()

    def loss() -> float:
        x, losses, _ = rows(3)
        assert isinstance(losses, list)
        confirm = torch.arange(NUM_ROWS // 2, NUM_ROWS)
        mixed = run.model.mixture(x).output[0, confirm]
        return float(losses[0](mixed, confirm).detach().mean())

    before = loss()
    (record,) = run.search.step(BATCH)
    run.model.eval()
    assert record.accepted
    assert record.confirm_cost_before == pytest.approx(before, rel=1e-5)
    assert record.confirm_cost_after == pytest.approx(loss(), rel=1e-5)


def planted(**options: Any) -> PermutationSearch:
    mixture = make_mixture("top_k")
    x = torch.randn(NUM_ROWS, DIM)
    rows = SearchRows(x, lambda output, some: output.square().sum(-1) + some)
    return PermutationSearch(mixture, lambda _step: rows, **options)


def test_a_search_waits_until_training_can_afford_it() -> None:
    # Experts, the guess of a first search, and a look at the rows.
    num_passes = NUM_ROWS * (5 + 100 + 1)
    search = planted(every=2, max_share=0.125)
    # Eight times as many passes of training, three a row.
    enough = math.ceil(num_passes / (3 * 0.125))
    assert not search.step(0)
    assert not search.step(enough - 1)
    assert not search.step(1)  # enough, but between two searches
    assert search.step(0)
    spent = search.work_share * 3 * enough
    assert 0 < search.work_share < 0.125
    # From then on a search is expected to take what the last one took.
    num_steps = 0
    while not search.step(1000):
        num_steps += 1
        assert num_steps < 1000
    assert search.work_share <= 0.125
    assert 2 * spent <= 0.125 * 3 * (enough + 1000 * (num_steps + 1))


def test_rows_are_asked_for_once_before_a_search_can_be_afforded() -> None:
    asked = []
    rows = SearchRows(torch.randn(NUM_ROWS, DIM), lambda output, _: output.square().sum(-1))

    def noted(step: int) -> SearchRows:
        asked.append(step)
        return rows

    mixture = make_mixture("top_k")
    search = PermutationSearch(mixture, noted, every=1)
    for _ in range(3):
        assert not search.step(1)
    assert asked == [1]
    assert search.work_share == NUM_ROWS / 9
    resumed = PermutationSearch(mixture, noted, every=1)
    resumed.load_state_dict(search.state_dict())
    assert not resumed.step(1)
    assert asked == [1]


@pytest.mark.parametrize("max_share", [0.02, 0.05, 1.0])
def test_the_work_of_searches_stays_within_its_share(max_share: float) -> None:
    search = planted(every=1, max_share=max_share)
    num_searches = 0
    for _ in range(60):
        num_searches += bool(search.step(10_000))
        # A search may take more than the last one did, and is then paid for.
        assert search.work_share <= 1.2 * max_share
    assert num_searches > 3
    assert search.time_share > 0


def test_work_counts_every_expert_output_and_row_loss() -> None:
    seen: list[int] = []
    mixture = make_mixture("top_k")

    def row_loss(output: Tensor, some: Tensor) -> Tensor:
        seen.append(len(some) * (3 if output.requires_grad else 1))
        return output.square().sum(-1)

    rows = SearchRows(torch.randn(NUM_ROWS, DIM), row_loss)
    search = PermutationSearch(mixture, lambda _step: rows, every=1, max_share=None)
    search.step(1000)
    assert search.work_share == (NUM_ROWS * 5 + sum(seen)) / 3000


def test_the_time_of_searches_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def rows(_step: int) -> SearchRows:
        nonlocal now
        now += 2.0
        return SearchRows(torch.randn(NUM_ROWS, DIM), lambda output, _: output.sum(-1))

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    search = PermutationSearch(make_mixture("top_k"), rows, every=2, max_share=None)
    search.step(1)
    now += 10.0
    search.step(1)
    assert search.time_share == 0.2
    other = PermutationSearch(make_mixture("top_k"), rows, every=2, max_share=None)
    other.load_state_dict(search.state_dict())
    assert other.time_share == 0.2
    now += 1000.0  # between two processes, which is no training
    other.step(1)
    assert other.time_share == 0.2


@pytest.mark.parametrize("per", ["slot", "gate", "mixture"])
def test_all_gates_are_searched_and_recorded(per: Any) -> None:
    model = Classifier(num_gates=2)
    options = {"every": 1, "max_share": None, "per": per}
    search = PermutationSearch(model.mixture, rows_of(model), model=model, **options)
    assert [record.gate for record in search.step(1)] == [0, 1]


def test_a_hash_gate_is_searched_by_its_ids() -> None:
    mixture = MixtureOfExperts(awake(ROUTERS["hash"](5, 1)), Experts(5, (DIM, 4)))
    x, ids = torch.randn(200, DIM), torch.randint(40, (200,))
    targets = mixture(x, ids).output.detach()
    router_of(mixture).set_permutation(router_of(mixture).permutation.roll(1, -1))

    def rows(_step: int) -> SearchRows:
        return SearchRows(x, lambda y, some: (y - targets[some]).square().sum(-1), ids)

    search = PermutationSearch(mixture, rows, every=1, max_share=None)
    (record,) = search.step(1)
    assert record.num_moved == 5
    assert torch.equal(mixture(x, ids).output, targets)


def test_the_state_holds_tensors_only_and_comes_back_whole() -> None:
    run = Training(every=1)
    for step in range(3):
        run.step(step)
    state = run.search.state_dict()
    assert all(isinstance(each, Tensor) for each in state.values())
    other = Training(every=1)
    other.search.load_state_dict(state)
    assert other.search.records == run.search.records
    assert [type(each) for each in other.search.records[0]] == [
        type(each) for each in run.search.records[0]
    ]
    assert other.search.work_share == run.search.work_share


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": None}, ValueError, "`state` must hold ['first_rows', 'last_work', "),
        ({"more": torch.ones(1)}, ValueError, "`state` must hold ['first_rows', 'last_work', "),
        ({"work": torch.ones(2)}, ValueError, "`state['work']` must have shape (), got (2,)."),
        ({"records": torch.ones(2, 3)}, ValueError, "must have shape (2, 12), got (2, 3)."),
        ({"step": 3}, TypeError, "`state['step']` must be a torch.Tensor, got int."),
    ],
    ids=["missing", "extra", "shape", "records", "type"],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    search = planted(every=2)
    search.step(7)
    before = search.state_dict()
    offered = {name: each for name, each in {**before, **change}.items() if each is not None}
    with pytest.raises(error, match=re.escape(message)):
        search.load_state_dict(offered)
    assert all(torch.equal(before[name], each) for name, each in search.state_dict().items())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be an integer >= 1, got 0."),
        ({"max_share": 0.0}, ValueError, "`max_share` must be finite and > 0, or None, got 0.0."),
        ({"max_share": "a"}, TypeError, "`max_share` must be a number, got 'a'."),
        ({"per": "expert"}, ValueError, "`per` must be one of ['slot', 'gate', 'mixture']"),
        ({"model": nn.Linear(2, 2)}, ValueError, "`model` must contain `mixture`, got a Linear"),
        ({"model": 3}, TypeError, "`model` must be a torch.nn.Module, got int."),
        ({"mixture": nn.Linear(2, 2)}, TypeError, "`mixture` must be a mixture, got Linear."),
        ({"rows": torch.ones(2)}, TypeError, "`rows` must be a function, got Tensor."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_argument_is_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    mixture = make_mixture("comet")
    given: dict[str, Any] = {"mixture": mixture, "rows": lambda _: None, "every": 3, **options}
    with pytest.raises(error, match=re.escape(message)):
        PermutationSearch(**given)


def test_a_number_of_rows_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_rows` must be an integer >= 0, got -1"):
        planted(every=1).step(-1)


@pytest.mark.parametrize("differentiable", [False, True])
def test_the_first_search_of_many_slots_stays_within_its_share(*, differentiable: bool) -> None:
    router = awake(ROUTERS["comet"](16, 4))
    mixture = MixtureOfExperts(router, Experts(16, (DIM, 4)))
    x, targets = torch.randn(1000, DIM), torch.randn(1000, 4)

    def row_loss(output: Tensor, some: Tensor) -> Tensor:
        output = output if differentiable else output.detach()
        return (output - targets[some]).square().sum(-1)

    rows = SearchRows(x, row_loss)
    search = PermutationSearch(mixture, lambda _step: rows, every=1)
    while not search.step(10_000):
        pass
    # What the budget ends is still confirmed, and a question of many rows is asked whole.
    assert 0 < search.work_share <= 0.08


def test_a_search_that_was_cut_is_no_measure_of_the_next() -> None:
    router = awake(ROUTERS["comet"](16, 4))
    mixture = MixtureOfExperts(router, Experts(16, (DIM, 4)))
    x, targets = torch.randn(1000, DIM), torch.randn(1000, 4)
    rows = SearchRows(x, lambda output, some: (output.detach() - targets[some]).square().sum(-1))
    search = PermutationSearch(mixture, lambda _step: rows, every=1)
    searched = [step for step in range(1, 400) if search.step(10_000)]
    shares = [step / search.records[0].step for step in searched]
    # Twice what the first was cut at: the next one has three times its budget in all.
    assert shares[1] > 2.5


def test_a_gate_that_is_left_alone_may_be_one_that_cannot_be_searched() -> None:
    routers = [awake(ROUTERS[name](5, 2)) for name in ("top_k", "comet")]
    mixture = MultiGateMixtureOfExperts(routers, Experts(5, (DIM, 4)), threshold=0.2)
    rows = SearchRows(torch.randn(NUM_ROWS, DIM), [lambda output, _rows: output.sum(-1), None])
    search = PermutationSearch(mixture, lambda _step: rows, every=1, max_share=None)
    (record,) = search.step(100)
    assert record.gate == 0
