"""`moe-bench tune`."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from optuna.storages import BaseStorage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from moe_benchmarks._cli._common import (
    INTERRUPTED,
    DataDir,
    Device,
    Epochs,
    Patience,
    Share,
    fail,
    names,
)
from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._device import find_device
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import PAPER_GATES
from moe_benchmarks._files import DamagedFileError
from moe_benchmarks._tune._errors import StudyError
from moe_benchmarks._tune._plan import StudyPlan
from moe_benchmarks._tune._storage import (
    hold_study,
    open_study,
    write_rows,
)
from moe_benchmarks._tune._worker import run_workers

WRITE_SECONDS = 30.0  # between two writings of the rows


def tune(
    experiment: Annotated[str, typer.Argument(help="As `moe-bench list` names it.")],
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    trials: Annotated[int, typer.Option(help="Trials of each variant.")] = 30,
    gates: Annotated[str, typer.Option(help="Gates, separated by commas.")] = ",".join(PAPER_GATES),
    searches: Annotated[
        str, typer.Option(help="Searches, separated by commas; each is tried with every gate.")
    ] = "identity,exact",
    share: Share = 1.0,
    epochs: Epochs = None,
    patience: Patience = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the trials out.")] = 1,
    stack: Annotated[
        int,
        typer.Option(
            min=1,
            help="Trials of a variant that are trained together, as one model: for GPUs, where "
            "steps of one trial are too small. On the CPU it takes longer.",
        ),
    ] = 1,
    device: Device = "cpu",
    sampler: Annotated[str, typer.Option(help="random, as in the paper, or tpe.")] = "random",
    seed: Annotated[int, typer.Option(help="Same seed, same trials.")] = 0,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database, or grpc://host:port of Optuna's proxy of one: commands with "
            "an --out each, on any machines, share its trials.",
            show_default="a journal in --out",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Try many settings of each gate with each search, and write a row for each trial.

    Stop it at any time with Ctrl-C: the same command continues, and a larger --trials adds
    more. Rows are in OUT/rows.jsonl; `moe-bench report` makes a page of them.
    """
    console = Console(markup=False, highlight=False)
    try:
        plan = StudyPlan(
            experiment=experiment,
            gates=names(gates),
            searches=names(searches),
            trials=trials,
            share=share,
            epochs=epochs,
            patience=patience,
            sampler=sampler,
            seed=seed,
        )
        read = partial(
            load,
            EXPERIMENTS[experiment].dataset,
            data_dir,
            share=share,
            device=find_device(device),
        )
        read()  # what is missing is said before anything is begun
        with hold_study(out, plan) as plan:
            opened = open_study(out, plan, storage)
            run = partial(run_workers, load=read, num_workers=workers, stack=stack)
            _run(opened, plan, out, storage, run)
    except (DataError, DamagedFileError, StudyError, ImportError, ValueError, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is in {out}. The same command continues it.")
        raise typer.Exit(INTERRUPTED) from None
    except RuntimeError as error:
        fail(str(error))
    console.print(f"rows: {out / 'rows.jsonl'}", soft_wrap=True)


def _run(
    storage: BaseStorage,
    plan: StudyPlan,
    folder: Path,
    url: str | None,
    run: "partial[None]",
) -> None:
    """Run the workers, with a bar, and write the rows now and then, and at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[best]}"),
    )
    with Progress(*columns) as progress:
        total = plan.trials * len(plan.variants)
        task = progress.add_task(plan.experiment, total=total, best="")
        next_write = time.monotonic()

        def on_poll() -> None:
            nonlocal next_write
            if time.monotonic() < next_write:
                return
            rows = write_rows(storage, plan, folder)
            next_write = time.monotonic() + WRITE_SECONDS
            progress.update(task, completed=len(rows), best=_best(rows))

        try:
            run(folder, url, plan, on_poll=on_poll)
        finally:
            rows = write_rows(storage, plan, folder)
            progress.update(task, completed=len(rows), best=_best(rows))


def _best(rows: list[dict[str, object]]) -> str:
    """Say the lowest validation loss so far, and how many trials failed."""
    complete = [row for row in rows if row["state"] == "complete"]
    failed = len(rows) - len(complete)
    text = f"{failed} failed" if failed else ""
    if not complete:
        return text
    best = min(complete, key=_validation_loss)
    return f"best {_validation_loss(best):.4f} ({best['gate']}, {best['search']}) {text}"


def _validation_loss(row: dict[str, object]) -> float:
    loss: float = row["metrics"]["validation"]["trained"]["loss"]  # type: ignore[index]
    return loss
