"""`moe-bench distil`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from moe_benchmarks._cli._common import INTERRUPTED, DataDir, Device, fail, names, write_pages
from moe_benchmarks._data._catalog import data_folder
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._device import find_device
from moe_benchmarks._experiments._row import Row
from moe_benchmarks._experiments._run import DivergedError
from moe_benchmarks._language._processes import OnStep, train_here, train_in_workers
from moe_benchmarks._language._report import finding, render_language
from moe_benchmarks._language._settings import LanguageSettings, Precision
from moe_benchmarks._language._students import DENSE, STUDENTS, TRAINER
from moe_benchmarks._language._study import Cell, LanguageStudy
from moe_benchmarks._language._summary import variant_name
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._workers import only_one
from moe_runtime import CheckpointError

Train = Callable[[list[Cell], OnStep, Callable[[Row], None]], None]


def distil(
    task: Annotated[str, typer.Argument(help=f"A task of GLUE, or SQuAD: {', '.join(TASKS)}.")],
    model: Annotated[
        str, typer.Option(help="Pretrained dense model: a local folder, or a name on the hub.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for models, rows and the report.")],
    routers: Annotated[str, typer.Option(help="Separated by commas.")] = ",".join(STUDENTS),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that each train a model at a time.")
    ] = 1,
    trainer: Annotated[  # noqa: FBT002 - a flag of the command
        bool,
        typer.Option("--trainer", help="Fine-tune by transformers' Trainer, too, to compare."),
    ] = False,
    held_out: Annotated[  # noqa: FBT002 - a flag of the command
        bool,
        typer.Option(
            "--held-out", help="Score a tenth of the training rows, to choose settings on."
        ),
    ] = False,
    train_rows: Annotated[
        int | None, typer.Option(help="Training rows.", show_default="all")
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Of fine-tuning the dense model.")
    ] = LanguageSettings.epochs,
    learning_rate: Annotated[
        float, typer.Option(help="Of fine-tuning.")
    ] = LanguageSettings.learning_rate,
    distil_epochs: Annotated[
        int, typer.Option(help="Of each sparse model.")
    ] = LanguageSettings.distil_epochs,
    distil_learning_rate: Annotated[
        float, typer.Option(help="Of each sparse model.")
    ] = LanguageSettings.distil_learning_rate,
    distil_weight: Annotated[
        float, typer.Option(help="Of the distance from the dense model.")
    ] = LanguageSettings.distil_weight,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = LanguageSettings.batch_size,
    precision: Annotated[
        Precision, typer.Option(help="Of products in training; bfloat16 where that is faster.")
    ] = LanguageSettings.precision,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a row.", show_default="128; 384 for SQuAD")
    ] = None,
    experts: Annotated[int, typer.Option(help="Of each layer.")] = LanguageSettings.num_experts,
    width: Annotated[
        int,
        typer.Option(help="Hidden units of an expert.", show_default="a quarter of the layer's"),
    ] = 0,
    shared: Annotated[
        int | None,
        typer.Option(
            help="Hidden units that all experts have.",
            show_default="two thirds; none with --width",
        ),
    ] = None,
    gamma: Annotated[
        float, typer.Option(help="First width of the smooth step, in standard deviations.")
    ] = LanguageSettings.gamma,
    last_gamma: Annotated[float, typer.Option(help="Last width.")] = LanguageSettings.last_gamma,
    entropy_weight: Annotated[
        float, typer.Option(help="Of COMET and DSelect-k.")
    ] = LanguageSettings.entropy_weight,
    balance_weight: Annotated[
        float, typer.Option(help="Of Top-k.")
    ] = LanguageSettings.balance_weight,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    r"""Fine-tune a dense model, make sparse ones of it with each router, and compare them.

    For each seed: fine-tuning, the importance of hidden units on the training rows, and for each
    router a conversion and a distillation. What is done is kept: the same command continues.
    Needs the extra: pip install "moe-benchmarks\[nlp]".
    """
    unknown = [each for each in names(routers) if each not in STUDENTS]
    if unknown:
        fail(f"`--routers` must be among {list(STUDENTS)}, got {unknown}.")
    variants = (DENSE, *([TRAINER] if trainer else []), *names(routers))
    cells = [Cell(seed, each) for seed in range(seeds) for each in variants]
    try:
        if shared == 0 and not width:
            fail("--shared 0 needs --width, how wide experts that share nothing are.")
        settings = LanguageSettings(
            task=task,
            evaluate_on="held-out" if held_out else "dev",
            train_rows=train_rows,
            max_length=max_length or _usual_length(task),
            epochs=epochs,
            learning_rate=learning_rate,
            distil_epochs=distil_epochs,
            distil_learning_rate=distil_learning_rate,
            batch_size=batch_size,
            precision=precision,
            distil_weight=distil_weight,
            num_experts=experts,
            width=width,
            num_shared=shared or 0,
            gamma=gamma,
            last_gamma=last_gamma,
            entropy_weight=entropy_weight,
            balance_weight=balance_weight,
        )
        make = partial(
            LanguageStudy, settings, model, out, data_folder(data_dir), find_device(device)
        )
        study = make()
        # Workers need not read the whole model again to know which one it is.
        again = partial(make, pretrained=study.pretrained)
        train = (
            partial(train_here, study)
            if workers == 1
            else partial(train_in_workers, again, workers)
        )
        with only_one(out):
            _run(study, cells, train)
    except KeyboardInterrupt:
        typer.echo(f"stopped; what is done is in {out}. The same command continues it.")
        raise typer.Exit(INTERRUPTED) from None
    except (DataError, DivergedError, CheckpointError, ImportError, ValueError, OSError) as error:
        fail(str(error))


def _usual_length(task: str) -> int:
    # The settings refuse a task that is none.
    return TASKS[task].max_length if task in TASKS else LanguageSettings.max_length


def _run(study: LanguageStudy, cells: list[Cell], train: Train) -> None:
    console = Console(markup=False, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    missing = study.missing(cells)
    with Progress(*columns, console=console) as progress:
        whole = progress.add_task(
            study.task.name, total=len(cells), completed=len(cells) - len(missing)
        )
        bars: dict[Cell, TaskID] = {}

        def on_step(cell: Cell, stage: str, done: int, total: int) -> None:
            if cell not in bars:
                bars[cell] = progress.add_task("")
            name = f"seed {cell.seed}, {variant_name(cell.variant)}: {stage}"
            progress.update(bars[cell], description=name, completed=done, total=total)

        def on_row(row: Row) -> None:
            study.add(row)
            console.print(_line(row))
            progress.advance(whole)
            # None for a model that only had to be scored.
            bar = bars.pop(Cell(row["seed"], row["variant"]), None)
            if bar is not None:
                progress.remove_task(bar)

        train(missing, on_step, on_row)
    rows = study.rows()
    page = write_pages(study.folder, render_language(rows))
    console.print(finding(rows))
    console.print(f"report: {page}", soft_wrap=True)


def _line(row: Row) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in row["scores"]["hard"].items())
    name = variant_name(row["variant"])
    return f"{row['task']}, seed {row['seed']}, {name}: {scores} ({row['seconds']:.0f} s)"
