"""Models are trained on another device than the CPU; run by `test_second_device.py`, alone."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _language import write_glue, write_model, write_squad
from _synthetic import STEADY_RATINGS, ratings, tiny
from _tiny import Run

from moe_benchmarks._experiments._row import run_trial
from moe_benchmarks._experiments._run import Run as TrainingRun
from moe_benchmarks._experiments._stack import StackedRun, train_together
from moe_benchmarks._language._students import STUDENTS
from moe_benchmarks._speed._measure import measure_speed

sys.path.append(str(Path(__file__).parents[2] / "moe-runtime" / "tests"))
from _second_device import NAME, register  # type: ignore[import-not-found]

register()
DEVICE = torch.device(NAME)
RATINGS = replace(STEADY_RATINGS, num_experts=5)
SEARCHES = ("identity", "random", "soft-mix", "relaxed", "exact", "exact-shared")
OTHERS = [("hash", "ids"), ("top-k", "exact"), ("dselect-k", "identity")]


@pytest.mark.parametrize(("gate", "search"), [*(("comet", each) for each in SEARCHES), *OTHERS])
def test_a_trial_has_the_numbers_of_the_cpu(gate: str, search: str) -> None:
    settings, data = tiny(gate, search), ratings()
    wanted, _ = run_trial(RATINGS, settings, data, share=1.0)
    found, trained = run_trial(RATINGS, settings, data.to(DEVICE), share=1.0)
    assert next(trained.model.parameters()).device.type == NAME
    assert found["device"] == f"{NAME}:0"
    for split, numbers in found["metrics"].items():
        for routing, values in numbers.items():
            loss = wanted["metrics"][split][routing]["loss"]
            assert values["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(("gate", "search"), [("comet", "relaxed"), *OTHERS])
def test_a_stack_has_the_numbers_of_the_cpu(gate: str, search: str) -> None:
    found = []
    for data in (ratings(), ratings().to(DEVICE)):
        runs = [
            StackedRun(TrainingRun(RATINGS, tiny(gate, search, seed=seed, search_epochs=1), data))
            for seed in range(3)
        ]
        for _ in range(3):
            trained = train_together(runs, [each.run.begin_epoch() for each in runs])
            for each, epoch in zip(runs, trained, strict=True):
                each.end_epoch(epoch)
        found.append([each.run.progress.history[-1].validation_loss for each in runs])
    assert runs[0].values.device.type == NAME
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("gate", ["hash", "top-k", "dselect-k", "comet"])
def test_speed_is_measured(gate: str) -> None:
    for speed in measure_speed(RATINGS, ratings().to(DEVICE), gate, seconds=0.0):
        assert speed.rows_per_second > 0


@pytest.mark.parametrize(
    ("task", "precision", "routers"),
    [("CoLA", "float32", [*STUDENTS]), ("SQuAD2.0", "bfloat16", ["comet+"])],
)
def test_models_of_language_are_distilled(
    task: str, precision: str, routers: list[str], tmp_path: Path, moe_bench: Run
) -> None:
    write_squad(write_glue(tmp_path))
    done = moe_bench(
        "distil", task, f"--model={write_model(tmp_path / 'model')}", f"--data-dir={tmp_path}",
        f"--out={tmp_path / 'out'}", f"--device={NAME}", f"--precision={precision}",
        f"--routers={','.join(routers)}", "--epochs=1", "--distil-epochs=2", "--seeds=1",
        "--train-rows=40", "--max-length=30", "--batch-size=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["variant"] for row in rows] == ["dense", *routers]
    assert {row["device"] for row in rows} == {NAME}


def test_a_device_that_is_not_there_is_named(tmp_path: Path, moe_bench: Run) -> None:
    for name in ("cuda:7", "abacus"):
        done = moe_bench("train", "digits", f"--out={tmp_path}", f"--device={name}")
        assert done.returncode == 2
        assert f"got '{name}': " in done.stderr
