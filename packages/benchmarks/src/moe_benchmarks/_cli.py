"""The `moe-bench` command."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import moe_benchmarks
from moe_benchmarks._data._catalog import DATASETS, data_folder
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._data._download import download
from moe_benchmarks._files import DamagedFileError
from moe_benchmarks._folder import OutputFolderError
from moe_benchmarks._quickstart import run_quickstart
from moe_benchmarks._settings import QuickstartSettings
from moe_runtime import CheckpointError
from moe_runtime.onnx import ExportError

DEFAULTS = QuickstartSettings()
# What can go wrong outside the program; anything else is a bug and shows its traceback.
EXPECTED_ERRORS = (DamagedFileError, DataError, ExportError, OutputFolderError, OSError)
INTERRUPTED = 130  # what a shell reports for Ctrl-C

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Experiments with sparse mixtures of experts."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(moe_benchmarks.__version__)


@app.command()
def data(
    name: Annotated[
        str | None, typer.Argument(help="Data set; without one, all are listed.", show_default="")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the published files.",
            show_default="MOE_BENCH_DATA, or ~/.cache/moe-benchmarks",
        ),
    ] = None,
) -> None:
    """Download the published files of a data set, or list the data sets.

    Shows the licence first. Stop it at any time with Ctrl-C: the same command continues.
    """
    console = Console(markup=False, highlight=False)
    if name is None:
        for known, source in DATASETS.items():
            console.print(f"{known}: {source.what}", soft_wrap=True)
        return
    try:
        download(name, data_folder(data_dir), console)
    except KeyboardInterrupt:
        console.print("stopped; the same command continues it.")
        raise typer.Exit(INTERRUPTED) from None
    except EXPECTED_ERRORS as error:
        _fail(str(error))


@app.command()
def quickstart(
    out: Annotated[
        Path, typer.Option(help="Folder for the report, the models and the results.")
    ] = Path("quickstart"),
    seed: Annotated[int, typer.Option(help="Same seed, same numbers.")] = DEFAULTS.seed,
    num_seeds: Annotated[int, typer.Option(help="Models a gate.")] = DEFAULTS.num_seeds,
    epochs: Annotated[int, typer.Option(help="Passes over the training rows.")] = DEFAULTS.epochs,
    num_experts: Annotated[int, typer.Option(help="Experts.")] = DEFAULTS.num_experts,
    k: Annotated[int, typer.Option("--k", help="Experts a row.")] = DEFAULTS.k,
    num_train: Annotated[int, typer.Option(help="Training rows.")] = DEFAULTS.num_train,
    num_validation: Annotated[int, typer.Option(help="Validation rows.")] = DEFAULTS.num_validation,
    num_test: Annotated[int, typer.Option(help="Test rows.")] = DEFAULTS.num_test,
    search_epoch: Annotated[
        int | None,
        typer.Option(help="Epochs before the permutation search of COMET+.", show_default="1"),
    ] = None,
    search_rows: Annotated[
        int | None,
        typer.Option(
            help="Training rows for that search; half of them confirm it.", show_default="4096"
        ),
    ] = None,
) -> None:
    """Learn, search, export and time sparse mixtures of experts on handwritten digits.

    Two digits overlaid in one picture are two tasks; five gates route both over one set of
    experts. Writes report.html, which holds everything. Stop it at any time with Ctrl-C: the
    same command continues where it stopped.
    """
    try:
        settings = QuickstartSettings(
            seed=seed,
            num_seeds=num_seeds,
            epochs=epochs,
            num_experts=num_experts,
            k=k,
            num_train=num_train,
            num_validation=num_validation,
            num_test=num_test,
            search_epoch=_or_at_most(search_epoch, DEFAULTS.search_epoch, epochs - 1),
            search_rows=_or_at_most(search_rows, DEFAULTS.search_rows, num_train),
        )
    except ValueError as error:
        _fail(str(error))
    console = Console(markup=False, highlight=False)
    try:
        report = run_quickstart(settings, out, console)
    except KeyboardInterrupt:
        console.print(
            f"stopped; what is done is in {out}. The same command continues it.", soft_wrap=True
        )
        raise typer.Exit(INTERRUPTED) from None
    except CheckpointError as error:
        _fail(f"{error} Delete it and run again.")
    except EXPECTED_ERRORS as error:
        _fail(str(error))
    console.print(f"report: {report}", soft_wrap=True)


def _or_at_most(given: int | None, default: int, most: int) -> int:
    """Return what was given, or the default where the other options allow it."""
    return max(0, min(default, most)) if given is None else given


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
