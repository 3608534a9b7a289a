"""The whole way on real data: train, search, evaluate, export, time, report; resumable."""

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from moe_benchmarks._evaluate import evaluate
from moe_benchmarks._files import read_json, remove_leftovers, write_json, write_text
from moe_benchmarks._folder import claim_folder
from moe_benchmarks._gates import TRAINED_GATES, Gate, build_model, inputs
from moe_benchmarks._latency import measure_latency
from moe_benchmarks._model import Reader, TwoTaskModel
from moe_benchmarks._report import render_report
from moe_benchmarks._results import Result, best_to_serve, reported_results
from moe_benchmarks._resumable import best_tensors
from moe_benchmarks._settings import QuickstartSettings
from moe_benchmarks._train import CHECKPOINT, Epoch, train
from moe_benchmarks._two_digits import TASKS, TwoDigits, load_two_digits
from moe_runtime import load_checkpoint, load_tensors
from moe_runtime.onnx import export

# Largest difference between ONNX Runtime and PyTorch that is served.
TOLERANCE = 1e-4
# Rows that the export's verification draws from.
EXAMPLE_ROWS = 512
# The products here are too small to share between threads, and one thread adds in the same order
# on a machine of any number of cores.
NUM_THREADS = 1
RESULT_KEYS = ("run", "seed", "gate", "history", "searches", "metrics", "load_by_class", "trees")
EXPORT_KEYS = ("run", "sha256", "verification", "largest_error", "tolerance")
LATENCY_KEYS = ("run", "batch_sizes", "milliseconds", "num_threads")
PACKAGES = ("moe-benchmarks", "moe-gates", "moe-localsearch", "moe-runtime", "numpy", "torch")


class Run(NamedTuple):
    """One model to train."""

    gate: Gate
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.gate.name.lower().replace(' ', '-')}-seed{self.seed}"


def run_quickstart(
    settings: QuickstartSettings, folder: str | os.PathLike[str], console: Console
) -> Path:
    """Do whatever is not done yet in a folder.

    Parameters
    ----------
    settings
        What determines the numbers.
    folder
        New, empty, or begun with the same settings.
    console
        Where progress is shown; ``Console(quiet=True)`` shows none.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    OutputFolderError
        If the folder holds something else.
    DamagedFileError, CheckpointError
        If a file in it is damaged; deleting it makes the next run do that part again.
    ExportError
        If the exported model does not answer as PyTorch does.
    """
    folder = Path(folder)
    claim_folder(folder, settings)
    remove_leftovers(folder)
    with _num_threads(NUM_THREADS):
        return _run(settings, folder, console)


def _run(settings: QuickstartSettings, folder: Path, console: Console) -> Path:
    data = load_two_digits(
        num_train=settings.num_train,
        num_validation=settings.num_validation,
        num_test=settings.num_test,
        seed=settings.seed,
    )
    results = _train_all(settings, folder, data, console)
    write_json(folder / "results.json", results)
    served = best_to_serve(reported_results(results))
    run = next(run for run in _runs(settings) if run.name == served["run"])
    model = _load_best(run, settings, folder, data)
    info = _export(run, model, folder, data, console)
    latency = _time(run, model, folder, data, console)
    report = folder / "report.html"
    write_text(report, render_report(settings, results, info, latency))
    return report


def _runs(settings: QuickstartSettings) -> list[Run]:
    seeds = range(settings.seed, settings.seed + settings.num_seeds)
    return [Run(gate, seed) for seed in seeds for gate in TRAINED_GATES]


def _train_all(
    settings: QuickstartSettings, folder: Path, data: TwoDigits, console: Console
) -> list[Result]:
    runs = _runs(settings)
    results = []
    with _progress(console) as progress:
        bar = progress.add_task("training", total=len(runs) * settings.epochs)
        for index, run in enumerate(runs):
            path = folder / "runs" / run.name / "result.json"
            if path.exists() and _has_checkpoint(path.parent):
                result = read_json(path, *RESULT_KEYS)
            else:
                result = _train_one(run, settings, path.parent, data, progress, index)
                write_json(path, result)
                console.print(_line(run, result), soft_wrap=True)
            progress.update(bar, completed=(index + 1) * settings.epochs)
            results.append(result)
        progress.update(bar, description=f"{len(runs)} models trained")
    return results


def _has_checkpoint(folder: Path) -> bool:
    """Whether a run's model is there and whole; a damaged one is refused by name."""
    path = folder / CHECKPOINT
    if path.exists():
        load_checkpoint(path)
    return path.exists()


def _train_one(
    run: Run,
    settings: QuickstartSettings,
    folder: Path,
    data: TwoDigits,
    progress: Progress,
    index: int,
) -> Result:
    bar = progress.task_ids[0]

    def on_epoch(number: int, epoch: Epoch) -> None:
        progress.update(
            bar,
            completed=index * settings.epochs + number + 1,
            description=f"{run.gate.name}, seed {run.seed}: loss {epoch.validation_loss_hard:.3f}",
        )

    folder.mkdir(parents=True, exist_ok=True)
    trained = train(run.gate, settings, run.seed, data, folder, on_epoch=on_epoch)
    result = evaluate(trained, run.gate, data, k=settings.k)
    return {
        "run": run.name,
        "seed": run.seed,
        **result,
        "settings": settings.to_dict(),
        "device": f"cpu ({platform.machine()}), threads: {torch.get_num_threads()}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def _line(run: Run, result: Result) -> str:
    hard = result["metrics"]["test_hard"]
    accuracy = ", ".join(
        f"{task} {share:.1%}" for task, share in zip(TASKS, hard["accuracy"], strict=True)
    )
    return (
        f"{run.gate.name:17} seed {run.seed}: test accuracy with hard routing {accuracy}, "
        f"experts a row at most {hard['most_experts']}"
    )


def _load_best(
    run: Run, settings: QuickstartSettings, folder: Path, data: TwoDigits
) -> TwoTaskModel:
    model = build_model(run.gate, settings, run.seed, data.train.pixels.mean(0))
    checkpoint = load_checkpoint(folder / "runs" / run.name / CHECKPOINT)
    load_tensors(model, best_tensors(checkpoint.tensors))
    return model.eval()


def _export(
    run: Run, model: TwoTaskModel, folder: Path, data: TwoDigits, console: Console
) -> dict[str, Any]:
    """Export the model, unless the folder holds this very export, and say how exact it is."""
    target = folder / "model"
    done = folder / "export.json"
    if not (done.exists() and _is_intact(target, read_json(done, *EXPORT_KEYS), run)):
        names = ["pixels", "ids"] if run.gate.uses_ids else ["pixels"]
        examples = inputs(run.gate, data.validation, slice(EXAMPLE_ROWS))
        with console.status(f"exporting {run.name} to ONNX"):
            verification = export(
                Reader(model),
                examples,
                target,
                hard=True,
                input_names=names,
                output_names=[task.replace(" ", "_") for task in TASKS],
                tolerance=TOLERANCE,
            )
        entry = {
            "run": run.name,
            "sha256": _sha256(target / "model.onnx"),
            "verification": asdict(verification),
            "largest_error": verification.largest_error,
            "tolerance": TOLERANCE,
        }
        write_json(done, entry)
    info = read_json(done, *EXPORT_KEYS)
    sizes = ", ".join(str(size) for size in info["verification"]["batch_sizes"])
    console.print(
        f"exported {run.name}: ONNX Runtime and PyTorch differ by at most "
        f"{info['largest_error']:.2g} on batches of {sizes} rows (refused above {TOLERANCE:g})",
        soft_wrap=True,
    )
    return info


def _is_intact(target: Path, entry: dict[str, Any], run: Run) -> bool:
    model = target / "model.onnx"
    return (
        (target / "model_info.json").exists()
        and model.exists()
        and entry["run"] == run.name
        and entry["sha256"] == _sha256(model)
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _time(
    run: Run, model: TwoTaskModel, folder: Path, data: TwoDigits, console: Console
) -> dict[str, Any]:
    path = folder / "latency.json"
    if path.exists():
        latency = read_json(path, *LATENCY_KEYS)
        if latency["run"] == run.name:
            return latency
    with console.status("timing selected experts against all of them"):
        latency = measure_latency(model, run.gate, data.test, folder / "model" / "model.onnx")
    latency = {"run": run.name, **latency}
    write_json(path, latency)
    return latency


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress


@contextmanager
def _num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
