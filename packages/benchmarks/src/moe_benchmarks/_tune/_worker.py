"""Run a study's waiting trials, one after the other or in stacks, in one process or in several."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

from optuna.storages import BaseStorage

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._row import failed_row, run_trial
from moe_benchmarks._tune._plan import StudyPlan
from moe_benchmarks._tune._stacked import TrialStack
from moe_benchmarks._tune._storage import open_storage
from moe_benchmarks._tune._trial import count_trials, take_trial
from moe_benchmarks._workers import POLL_SECONDS, become_worker, running, threads_of_each


def work(
    storage: BaseStorage, plan: StudyPlan, load: Callable[[], Dataset], *, stack: int = 1
) -> None:
    """Run waiting trials until there are none.

    The variant with the fewest trials begun comes first, so that a study that is stopped has
    about as many of each. With a `stack`, so many trials of a variant are trained together.
    """
    dataset: Dataset | None = None
    while True:
        chosen = _next_variant(storage, plan)
        if chosen is None:
            return
        if dataset is None:
            dataset = load()
        gate, search = chosen
        if stack == 1 or GATES[gate].draws:
            _run_one(storage, plan, gate, search, dataset)
        else:
            TrialStack(storage, plan, gate, search, dataset, size=stack).work()


def run_workers(
    folder: Path,
    url: str | None,
    plan: StudyPlan,
    load: Callable[[], Dataset],
    *,
    num_workers: int,
    stack: int,
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
        context.Process(target=_worker, args=(folder, url, plan, load, stack, threads, os.getpid()))
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
    stack: int,
    threads: int,
    parent: int,
) -> None:
    become_worker(parent, threads)
    work(open_storage(folder, url), plan, load, stack=stack)


def _next_variant(storage: BaseStorage, plan: StudyPlan) -> tuple[str, str] | None:
    """Return the variant with waiting trials of which the fewest have begun."""
    best, fewest = None, None
    for variant in plan.variants:
        waiting, begun = count_trials(storage, plan, *variant)
        if waiting and (fewest is None or begun < fewest):
            best, fewest = variant, begun
    return best


def _run_one(
    storage: BaseStorage, plan: StudyPlan, gate: str, search: str, dataset: Dataset
) -> None:
    taken = take_trial(storage, plan, gate, search)
    if taken is None:  # another process took the last one meanwhile
        return
    experiment, settings = EXPERIMENTS[plan.experiment], taken.settings
    try:
        row, _ = run_trial(experiment, settings, dataset, share=plan.share, trial=taken.number)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is recorded and the next runs
        row = failed_row(
            experiment, settings, dataset.device, error, share=plan.share, trial=taken.number
        )
    taken.finish(row)
