"""What is timed against each other computes the same, and the numbers fit together."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _synthetic import pictures, ratings, tiny
from _tiny import Run
from sklearn.metrics import roc_auc_score

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS, Experiment
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._losses import task_losses, total_loss
from moe_benchmarks._experiments._model import MixtureModel, Prediction, build_model
from moe_benchmarks._speed._measure import DifferentAnswersError, harden, measure_speed
from moe_benchmarks._speed._published import NUM_THRESHOLDS, PublishedModel, StepMetrics
from moe_benchmarks._speed._stacked import measure_stack

RATINGS = replace(
    EXPERIMENTS["movielens-1m"],
    embedding_width=8,
    expert_widths=(8, 6),
    head_widths=(8,),
    num_experts=5,
)
PICTURES = replace(EXPERIMENTS["multi-mnist"], expert_widths=(8, 8), head_widths=(8,))
# In the repository, as the results are.
DOCS = Path(__file__).parents[1] / ".." / ".." / "docs" / "training_speed.md"


def build(
    gate: str, experiment: Experiment, dataset: Dataset, **changes: object
) -> tuple[MixtureModel, PublishedModel]:
    settings = replace(tiny(gate), **changes)  # type: ignore[arg-type]
    model = build_model(experiment, settings, dataset, steps_per_epoch=1)
    return model, PublishedModel(model)


@pytest.mark.parametrize("num_experts", [2, 3, 5, 8, 9, 16, 17])
@pytest.mark.parametrize("is_hardened", [False, True])
def test_the_published_comet_is_the_same_function(num_experts: int, *, is_hardened: bool) -> None:
    data = ratings()
    model, _ = build("comet", RATINGS, data, num_experts=num_experts, gamma=0.1)
    if is_hardened:
        harden(model)
    model = model.double()
    published = PublishedModel(model)
    found = []
    for each in (model.eval(), published.eval()):
        prediction = each(data.train.inputs)
        loss = total_loss(task_losses(data.tasks, prediction.outputs, data.train), (0.5, 0.5))
        torch.autograd.backward(loss + prediction.penalty)
        tables = [table.grad for table in each.bottom.parameters()]
        found.append([*prediction, *tables])
    (outputs, *ours), (wanted, *theirs) = found
    # The authors' offsets inside of logarithms are in the published form only.
    for here, there in zip([*outputs, *ours], [*wanted, *theirs], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize(
    ("experiment", "data"), [(RATINGS, ratings), (PICTURES, pictures)], ids=["ids", "pictures"]
)
def test_every_gate_answers_the_same_in_both_forms(
    gate: str, experiment: Experiment, data: Callable[[], Dataset]
) -> None:
    dataset = data()
    model, published = build(gate, experiment, dataset)
    ours, theirs = model.eval()(dataset.test.inputs), published.eval()(dataset.test.inputs)
    torch.testing.assert_close(ours.outputs, theirs.outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.penalty, theirs.penalty, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["comet", "dselect-k"])
def test_a_hardened_gate_uses_k_experts_but_for_single_rows(gate: str) -> None:
    data = ratings()
    model, _ = build(gate, RATINGS, data)
    soft = (model.eval()(data.test.inputs).weights_GTE != 0).sum(-1)
    harden(model)
    hard = (model.eval()(data.test.inputs).weights_GTE != 0).sum(-1)
    assert (hard > 2).double().mean() < 0.01
    assert (soft > 2).all()


def test_metrics_of_the_steps_add_up() -> None:
    data = ratings()
    outputs = (torch.randn(len(data.train), 1), torch.randn(len(data.train), 1))
    weights_GTE = torch.rand(2, len(data.train), 5) * (torch.rand(2, len(data.train), 5) < 0.5)
    metrics = StepMetrics(data.tasks)
    for rows in torch.split(torch.arange(len(data.train)), 100):
        prediction = Prediction(
            tuple(output[rows] for output in outputs), torch.zeros(()), weights_GTE[:, rows]
        )
        metrics.update(prediction, data.train.take(rows))
    totals = metrics.totals
    positive = data.train.targets[0].bool()
    true_rate = totals["watched true positives"] / positive.sum()
    false_rate = totals["watched false positives"] / (~positive).sum()
    area = -np.trapezoid(true_rate.numpy(), false_rate.numpy())
    exact = roc_auc_score(positive, outputs[0][:, 0])
    assert area == pytest.approx(exact, abs=1 / NUM_THRESHOLDS)
    assert totals["experts"].tolist() == (weights_GTE != 0).sum((1, 2)).tolist()
    losses = task_losses(data.tasks, outputs, data.train)
    assert totals["watched loss"] / len(data.train) == pytest.approx(losses[0].item(), rel=1e-5)


def test_the_numbers_fit_together() -> None:
    data = ratings()
    soft, hard = measure_speed(replace(RATINGS, batch_size=100), data, "comet", seconds=0)
    assert (soft.hardened, hard.hardened) == (False, True)
    assert soft.experts_per_row == soft.union_per_row == 5
    assert hard.experts_per_row <= hard.union_per_row <= 4
    assert hard.floor_milliseconds > 0
    for each in (soft, hard):
        assert each.rows_per_second * each.milliseconds == pytest.approx(100 * 1e3)
        assert each.ratio == pytest.approx(each.rows_per_second / each.published_rows_per_second)
        assert each.epoch_seconds == pytest.approx(6e-3 * each.milliseconds)
        assert each.difference < 1e-5


def test_forms_that_disagree_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(model: MixtureModel) -> PublishedModel:
        published = PublishedModel(model)
        with torch.no_grad():
            list(published.heads.parameters())[-1].add_(1)  # a bias of the last task
        return published

    monkeypatch.setattr("moe_benchmarks._speed._measure.PublishedModel", other)
    with pytest.raises(DifferentAnswersError, match="differ by"):
        measure_speed(RATINGS, ratings(), "top-k", seconds=0)


def test_the_documentation_quotes_what_was_measured() -> None:
    package = Path(__file__).parents[1]
    path = package / "results" / "speed" / "movielens-1m-threads-2.json"
    if not path.exists():
        pytest.skip("needs the repository: results are in no package")
    page = DOCS.read_text(encoding="utf-8")
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        name = GATES[row["gate"]].name + (", hardened" if row["hardened"] else "")
        line = (
            f"| {name} | {row['experts_per_row']:.2f} | {row['rows_per_second']:,.0f} "
            f"| {row['published_rows_per_second']:,.0f} | {row['ratio']:.1f}x |"
        )
        assert line in page


def test_the_documentation_quotes_what_was_counted_of_stacks() -> None:
    package = Path(__file__).parents[1]
    paths = sorted((package / "results" / "speed").glob("*-stack-50.json"))
    if not paths:
        pytest.skip("needs the repository: results are in no package")
    page = DOCS.read_text(encoding="utf-8")
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        for row in found["rows"]:
            alone, together = row["stack"] * row["operations"], row["stacked_operations"]
            line = (
                f"| {found['experiment']}, {GATES[row['gate']].name} | {alone:,} | {together:,} "
                f"| {alone / together:.0f}x | {row['ratio']:.2f}x |"
            )
            assert line in page


@pytest.mark.parametrize(
    ("experiment", "data"), [(RATINGS, ratings), (PICTURES, pictures)], ids=["ids", "pictures"]
)
def test_a_stack_needs_hardly_more_operations_than_a_trial(
    experiment: Experiment, data: Callable[[], Dataset]
) -> None:
    few, many = (
        measure_stack(replace(experiment, dropout=0.0), data(), "top-k", size, seconds=0)
        for size in (2, 9)
    )
    assert few.operations == many.operations
    assert few.stacked_operations == many.stacked_operations < 2.5 * few.operations
    assert many.ratio == pytest.approx(9 * many.milliseconds / many.stacked_milliseconds)


def test_the_command_times_stacks(tmp_path: Path, moe_bench: Run) -> None:
    path = tmp_path / "speed.json"
    options = ("speed", "digits", "--share=0.02", "--seconds=0", "--stack=3", f"--out={path}")
    done = moe_bench(*options, "--gates=hash,comet")
    assert done.returncode == 0, done.stderr
    assert "3 trials, batches of 400 rows" in done.stdout
    assert [row["gate"] for row in json.loads(path.read_text())["rows"]] == ["hash", "comet"]
    done = moe_bench(*options, "--gates=exact-k")
    assert done.returncode == 2
    assert "exact-k draws in training" in done.stderr


def test_the_command_prints_a_table_and_writes_the_numbers(tmp_path: Path, moe_bench: Run) -> None:
    path = tmp_path / "speed.json"
    done = moe_bench("speed", "digits", "--share=0.02", "--gates=hash,dselect-k", "--seconds=0",
                     "--threads=1", f"--out={path}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hardened" in done.stdout
    written = json.loads(path.read_text())
    assert [(row["gate"], row["hardened"]) for row in written["rows"]] == [
        ("hash", False), ("dselect-k", False), ("dselect-k", True)
    ]  # fmt: skip
    assert written["threads"] == 1
    assert "torch" in written["versions"]
