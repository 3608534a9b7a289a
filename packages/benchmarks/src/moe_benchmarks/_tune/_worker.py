"""Run a study's waiting trials, one after the other, in one process or in several."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._row import failed_row, run_trial
from moe_benchmarks._tune._plan import StudyPlan, sampled_settings, suggested_settings
from moe_benchmarks._tune._storage import (
    NUMBER,
    ROW,
    open_storage,
    sampler,
    study_name,
)
from moe_benchmarks._workers import POLL_SECONDS, become_worker, running, threads_of_each


def work(storage: BaseStorage, plan: StudyPlan, load: Callable[[], Dataset]) -> None:
    """Run waiting trials until there are none.

    The variant with the fewest trials begun comes first, so that a study that is stopped has
    about as many of each.
    """
    dataset: Dataset | None = None
    while True:
        chosen = _next_variant(storage, plan)
        if chosen is None:
            return
        if dataset is None:
            dataset = load()
        _run_one(storage, plan, *chosen, dataset)


def run_workers(
    folder: Path,
    url: str | None,
    plan: StudyPlan,
    load: Callable[[], Dataset],
    *,
    num_workers: int,
    on_poll: Callable[[], None],
) -> None:
    """Share a study out among processes; `on_poll` is called while they work.

    Raises
    ------
    RuntimeError
        If a worker ends with an error.
    """
    context = multiprocessing.get_context("spawn")
    threads = threads_of_each(num_workers)
    workers = [
        context.Process(target=_worker, args=(folder, url, plan, load, threads, os.getpid()))
        for _ in range(num_workers)
    ]
    with running(workers):
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL_SECONDS)
            on_poll()
    codes = [worker.exitcode for worker in workers]
    if any(codes):
        msg = f"a worker ended with an error (exit codes {codes}); the same command continues."
        raise RuntimeError(msg)


def _worker(
    folder: Path,
    url: str | None,
    plan: StudyPlan,
    load: Callable[[], Dataset],
    threads: int,
    parent: int,
) -> None:
    become_worker(parent, threads)
    work(open_storage(folder, url), plan, load)


def _next_variant(storage: BaseStorage, plan: StudyPlan) -> tuple[str, str] | None:
    """Return the variant with waiting trials of which the fewest have begun."""
    best, fewest = None, None
    for variant in plan.variants:
        study = optuna.load_study(storage=storage, study_name=study_name(storage, plan, *variant))
        trials: Sequence[optuna.trial.FrozenTrial] = study.get_trials(deepcopy=False)
        waiting = sum(trial.state is TrialState.WAITING for trial in trials)
        begun = len(trials) - waiting
        if waiting and (fewest is None or begun < fewest):
            best, fewest = variant, begun
    return best


def _run_one(
    storage: BaseStorage, plan: StudyPlan, gate: str, search: str, dataset: Dataset
) -> None:
    study = optuna.load_study(
        storage=storage,
        study_name=study_name(storage, plan, gate, search),
        sampler=sampler(plan, 0),
    )
    trial = study.ask()
    if NUMBER not in trial.user_attrs:
        # Another process took the last waiting one meanwhile, and Optuna made a new trial.
        study.tell(trial, state=TrialState.FAIL)
        return
    number = int(trial.user_attrs[NUMBER])
    study.sampler = sampler(plan, number)
    if plan.sampler == "random":
        settings = sampled_settings(plan, gate, search, number)
    else:
        settings = suggested_settings(plan, gate, search, number, trial)
    experiment = EXPERIMENTS[plan.experiment]
    try:
        row, _ = run_trial(experiment, settings, dataset, share=plan.share, trial=number)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded and the next runs
        row = failed_row(
            experiment, settings, dataset.device, error, share=plan.share, trial=number
        )
    # The row first: a trial that is finished has one.
    trial.set_user_attr(ROW, json.dumps(row, allow_nan=False))
    if row["state"] == "complete":
        study.tell(trial, row["metrics"]["validation"]["trained"]["loss"])
    else:
        study.tell(trial, state=TrialState.FAIL)
