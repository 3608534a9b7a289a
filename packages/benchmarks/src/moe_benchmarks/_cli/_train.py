"""`moe-bench train`."""

import hashlib
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

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
from moe_benchmarks._cli._epoch_log import EpochLog
from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._csv_table import read_table
from moe_benchmarks._data._dataset import DataError, Dataset
from moe_benchmarks._data._share import with_users
from moe_benchmarks._device import find_device
from moe_benchmarks._experiments._catalog import EXPERIMENTS, Experiment
from moe_benchmarks._experiments._processes import joined, rank
from moe_benchmarks._experiments._row import Row, run_trial
from moe_benchmarks._experiments._run import DivergedError, Epoch
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._files import claim_for, write_json
from moe_runtime import CheckpointError

CHECKPOINT, ROW = "checkpoint.safetensors", "row.json"


def train(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint and the result.")],
    experiment: Annotated[
        str, typer.Argument(help="As `moe-bench list` names it; with --csv, whose sizes to take.")
    ] = "movielens-1m",
    gate: Annotated[str, typer.Option(help="As `moe-bench list` names it.")] = "comet",
    search: Annotated[str, typer.Option(help="As `moe-bench list` names it.")] = "identity",
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 3e-4,
    gamma: Annotated[float, typer.Option(help="Width of the smooth step.")] = 1.0,
    entropy_weight: Annotated[float, typer.Option(help="Weight of the entropy penalty.")] = 0.1,
    search_epochs: Annotated[int, typer.Option(help="First epochs, with searches.")] = 3,
    epochs: Epochs = None,
    patience: Patience = None,
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = 0,
    csv: Annotated[
        Path | None, typer.Option(help="A table of your own, with a header, instead of its data.")
    ] = None,
    user: Annotated[str, typer.Option(help="With --csv: column of the users.")] = "user",
    item: Annotated[str, typer.Option(help="With --csv: column of the items.")] = "item",
    targets: Annotated[
        str, typer.Option(help="With --csv: columns to predict, separated by commas.")
    ] = "rating",
    tensorboard: Annotated[  # noqa: FBT002 - a flag of the command
        bool, typer.Option("--tensorboard", help="Write epochs to OUT/tensorboard too.")
    ] = False,
    share: Share = 1.0,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Train one model, and write its result row.

    Every epoch is saved: the same command continues where it was stopped. OUT/epochs.csv has
    the losses, the penalty, and the experts' load of each. Several processes share each batch
    with `torchrun --nproc-per-node 2 -m moe_benchmarks train ...`.
    """
    if experiment not in EXPERIMENTS:
        fail(f"the experiment must be one of {list(EXPERIMENTS)}, got {experiment!r}.")
    chosen = EXPERIMENTS[experiment]
    if csv is not None:
        chosen = _own(chosen, csv, len(names(targets)))
    try:
        where = find_device(device)
        settings = TrialSettings.for_experiment(
            chosen,
            gate=gate,
            search=search,
            seed=seed,
            learning_rate=learning_rate,
            gamma=gamma,
            entropy_weight=entropy_weight,
            search_epochs=search_epochs,
            epochs=epochs,
            patience=patience,
        )
        determined_by = {"experiment": chosen.name, "share": share, **settings.to_dict()}
        if csv is None:
            dataset = load(chosen.dataset, data_dir, share=share)
        else:
            whole = read_table(csv, user=user, item=item, targets=names(targets), seed=seed)
            dataset = with_users(whole, share)
            columns = {"user": user, "item": item, "targets": list(names(targets))}
            determined_by |= {"csv": hashlib.sha256(csv.read_bytes()).hexdigest(), **columns}
        with joined(where) as own:
            if rank() == 0:
                claim_for(out, determined_by, kind="run")
            _train(chosen, settings, dataset.to(own), out, share, tensorboard=tensorboard)
    except KeyboardInterrupt:
        typer.echo(f"stopped; the last epoch is in {out}. The same command continues it.")
        raise typer.Exit(INTERRUPTED) from None
    except (DataError, DivergedError, CheckpointError, ImportError, ValueError, OSError) as error:
        fail(str(error))


def _own(sizes: Experiment, table: Path, num_tasks: int) -> Experiment:
    """Take an experiment's sizes for a table of users, items and targets."""
    if sizes.bottom != "embeddings":
        fail(f"--csv is for the sizes of an experiment with users and items, got {sizes.name}.")
    return replace(
        sizes,
        name=table.stem,
        dataset=str(table),
        about="a table of your own",
        task_weights=(1 / max(num_tasks, 1),) * num_tasks,
    )


def _train(
    experiment: Experiment,
    settings: TrialSettings,
    dataset: Dataset,
    out: Path,
    share: float,
    *,
    tensorboard: bool,
) -> None:
    is_first = rank() == 0
    console = Console(markup=False, highlight=False, quiet=not is_first)
    tasks = [task.name for task in dataset.tasks]
    log = EpochLog(out, tasks, len(dataset.train), tensorboard=tensorboard) if is_first else None
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with closing(log) if log else nullcontext(), Progress(*columns, console=console) as progress:
        bar = progress.add_task("", epoch=1, speed="", total=None)

        def on_batch(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(number: int, epoch: Epoch) -> None:
            if log is not None:
                progress.update(bar, completed=0, epoch=number + 2, speed=log.speed(epoch))
                console.print(log.write(number + 1, epoch))

        row, _ = run_trial(
            experiment,
            settings,
            dataset,
            share=share,
            checkpoint=out / CHECKPOINT,
            on_batch=on_batch,
            on_epoch=on_epoch,
        )
    if is_first:
        write_json(out / ROW, row)
    _print_row(console, row)
    console.print(f"row: {out / ROW}", soft_wrap=True)


def _print_row(console: Console, row: Row) -> None:
    for routing in ("trained", "hard"):
        metrics = row["metrics"]["test"][routing]
        tasks = ", ".join(
            f"{task}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
            for task, numbers in metrics["tasks"].items()
        )
        used = f"{metrics['experts_per_row']:.2f} experts a row"
        how = "as trained" if routing == "trained" else "hard"
        console.print(f"test, {how}: loss {metrics['loss']:.4f} ({tasks}); {used}")
