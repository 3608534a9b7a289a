"""A trial as a result row: settings, numbers, and where they come from.

Axes: G gates (one a task), T rows, E experts.
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import moe_gates
from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._device import describe_device
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._commit import commit_of
from moe_benchmarks._experiments._loop import fit
from moe_benchmarks._experiments._metrics import measure
from moe_benchmarks._experiments._run import DivergedError, Epoch, Trained
from moe_benchmarks._experiments._settings import TrialSettings

PACKAGES = ("moe-gates", "moe-localsearch", "moe-runtime", "moe-benchmarks", "torch", "numpy")

Row = dict[str, Any]


def run_trial(
    experiment: Experiment,
    settings: TrialSettings,
    dataset: Dataset,
    *,
    share: float,
    trial: int = 0,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda _done, _total: None,
    on_epoch: Callable[[int, Epoch], None] = lambda _number, _epoch: None,
) -> tuple[Row, Trained]:
    """Train, measure, and return the row and the model.

    Raises
    ------
    DivergedError
        If a loss is not finite: JSON has no such numbers.
    """
    begin = time.perf_counter()
    trained = fit(
        experiment,
        settings,
        dataset,
        checkpoint=checkpoint,
        on_batch=on_batch,
        on_epoch=on_epoch,
    )
    seconds = time.perf_counter() - begin
    row = complete_row(
        experiment, settings, dataset, trained, share=share, trial=trial, seconds=seconds
    )
    return row, trained


def complete_row(
    experiment: Experiment,
    settings: TrialSettings,
    dataset: Dataset,
    trained: Trained,
    *,
    share: float,
    trial: int,
    seconds: float,
    stack: int = 1,
) -> Row:
    """Measure a trained model, and return its row.

    `stack` is how many runs were trained together, at most, and `seconds` what it took of them.

    Raises
    ------
    DivergedError
        If a loss is not finite: JSON has no such numbers.
    """
    metrics: dict[str, Any] = {}
    load: list[list[float]] = []
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        metrics[name] = {}
        for routing in ("trained", "hard"):
            metrics[name][routing], weights_GTE = measure(
                trained.model,
                split,
                dataset.tasks,
                settings.task_weights,
                hard=routing == "hard",
                k=settings.k,
            )
            loss = metrics[name][routing]["loss"]
            if not math.isfinite(loss):
                msg = f"the {name} loss is not finite, routing {routing}: {loss}."
                raise DivergedError(msg)
            load = [moe_gates.expert_load(each).tolist() for each in weights_GTE]
    trained_seconds = sum(epoch.seconds for epoch in trained.history)
    return {
        **row_head(experiment, settings, dataset.device, share=share, trial=trial),
        "state": "complete",
        "error": None,
        "history": [asdict(epoch) for epoch in trained.history],
        "best_epoch": trained.best_epoch,
        "metrics": metrics,
        "load": load,
        "searches": [asdict(search) for search in trained.searches],
        "seconds": seconds,
        "stack": stack,
        "rows_per_second": len(dataset.train) * len(trained.history) / trained_seconds,
        "notes": list(dataset.notes),
    }


def failed_row(
    experiment: Experiment,
    settings: TrialSettings,
    device: torch.device,
    error: Exception,
    *,
    share: float,
    trial: int,
) -> Row:
    """Return the row of a trial that raised: recorded, not hidden."""
    return {
        **row_head(experiment, settings, device, share=share, trial=trial),
        "state": "failed",
        "error": f"{type(error).__name__}: {error}",
    }


def row_head(
    experiment: Experiment,
    settings: TrialSettings,
    device: torch.device,
    *,
    share: float,
    trial: int,
) -> dict[str, Any]:
    """Return what is known of a trial before it has run."""
    values = settings.to_dict()
    return {
        "experiment": experiment.name,
        "fraction": share,
        "gate": values.pop("gate"),
        "search": values.pop("search"),
        "trial": trial,
        "settings": values,
        **made_with(device),
    }


def made_with(device: torch.device, *others: str) -> dict[str, Any]:
    """Return what numbers were made with: the commit, the versions and the device.

    `others` are packages that are named besides our own, PyTorch and NumPy.
    """
    return {
        "commit": commit_of(Path(__file__)),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in (*PACKAGES, *others)},
        "device": describe_device(device),
    }
