"""Trials of a study that are trained as one model."""

import time
from pathlib import Path

import optuna
import pytest
import torch
from _small_study import PLAN, Row, numbers, run_here, wanted

from moe_benchmarks._experiments._run import Run
from moe_benchmarks._tune._plan import StudyPlan, sampled_settings
from moe_benchmarks._tune._storage import open_storage


def losses(row: Row) -> list[float]:
    metrics = row["metrics"]
    assert isinstance(metrics, dict)
    return [
        metrics[split][routing]["loss"]
        for split in ("validation", "test")
        for routing in ("trained", "hard")
    ]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_stack_gives_the_rows_of_trials_one_by_one(sampler: str, tmp_path: Path) -> None:
    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet", "exact-k"), "trials": 5, "epochs": 2,
                        "searches": ("exact",), "sampler": sampler})  # fmt: skip
    alone = run_here(tmp_path / "alone", plan)
    together = run_here(tmp_path / "together", plan, stack=3)
    assert numbers(together) == numbers(alone) == wanted(plan)
    # Exact-k draws, and is trained alone; of five trials the last two are left for each other.
    sizes = {gate: [row["stack"] for row in together if row["gate"] == gate] for gate in plan.gates}
    assert sizes == {"comet": [3, 3, 3, 2, 2], "exact-k": [1] * 5}
    for here, there in zip(together, alone, strict=True):
        assert there["stack"] == 1
        assert set(here) == set(there)
        if sampler == "random":  # the other learns from what is done by now
            assert here["settings"] == there["settings"]
            assert losses(here) == pytest.approx(losses(there), rel=1e-4)
    # What was asked for in vain is no trial.
    for gate, search in plan.variants:
        study = optuna.load_study(
            storage=open_storage(tmp_path / "together"),
            study_name=f"{plan.experiment}/{gate}/{search}",
        )
        assert len(study.trials) == plan.trials


def test_a_trial_that_fails_leaves_its_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",), "trials": 4, "epochs": 2})
    whole = run_here(tmp_path / "whole", plan, stack=4)
    settings, begin_epoch = sampled_settings(plan, "comet", "identity", 2), Run.begin_epoch

    def fail_in_the_second(run: Run) -> torch.Tensor:
        if run.settings == settings and run.next_epoch == 1:
            msg = "no such luck"
            raise RuntimeError(msg)
        return begin_epoch(run)

    monkeypatch.setattr(Run, "begin_epoch", fail_in_the_second)
    rows = run_here(tmp_path / "one", plan, stack=4)
    assert numbers(rows) == wanted(plan)
    assert [row["error"] for row in rows] == [None, None, "RuntimeError: no such luck", None]
    for here, there in zip(rows, whole, strict=True):
        if here["state"] == "complete":
            assert losses(here) == pytest.approx(losses(there), rel=1e-4)


def test_a_stack_records_what_each_trial_does_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",), "trials": 3, "epochs": 2})
    bad, build, pause = sampled_settings(plan, "comet", "identity", 1), Run.__init__, 0.1

    def build_two_of_three(run: Run, *args: object, **options: object) -> None:
        if bad in args:
            msg = "cannot be built"
            raise ValueError(msg)
        build(run, *args, **options)  # type: ignore[arg-type]

    def search(*_: object, **__: object) -> list[object]:
        time.sleep(pause)
        return []

    monkeypatch.setattr(Run, "__init__", build_two_of_three)
    monkeypatch.setattr("moe_benchmarks._experiments._run.search_epoch", search)
    rows = run_here(tmp_path, plan, stack=3)
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert rows[1]["error"] == "ValueError: cannot be built"
    assert all(row["seconds"] > pause for row in (rows[0], rows[2]))  # type: ignore[operator]


@pytest.mark.parametrize("function", ["begin_epoch", "end_epoch"])
def test_memory_that_does_not_suffice_is_no_result_of_a_trial(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",)})
    monkeypatch.setattr(Run, function, fail)
    with pytest.raises(torch.OutOfMemoryError):
        run_here(tmp_path, plan, stack=2)
    assert not (tmp_path / "rows.jsonl").exists(), "there is no row to write"


def test_a_row_that_cannot_be_kept_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "database is locked"
        raise OSError(msg)

    monkeypatch.setattr("moe_benchmarks._tune._trial.TakenTrial.finish", fail)
    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",)})
    with pytest.raises(OSError, match="database is locked"):
        run_here(tmp_path, plan, stack=2)


def test_what_fails_for_a_whole_stack_is_no_result_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        msg = "out of memory"
        raise RuntimeError(msg)

    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",)})
    with monkeypatch.context() as patch:
        patch.setattr("moe_benchmarks._tune._stacked.train_together", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            run_here(tmp_path, plan, stack=2)
    rows = run_here(tmp_path, plan)
    assert numbers(rows) == wanted(plan)
    assert {row["state"] for row in rows} == {"complete"}
