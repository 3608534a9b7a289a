"""`moe-bench data`."""

from typing import Annotated

import typer
from rich.console import Console

from moe_benchmarks._cli._common import INTERRUPTED, DataDir, fail
from moe_benchmarks._data._catalog import DATASETS, data_folder
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._data._download import download


def data(
    name: Annotated[
        str | None, typer.Argument(help="Data set; without one, all are listed.", show_default="")
    ] = None,
    data_dir: DataDir = None,
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
    except (DataError, OSError) as error:
        fail(str(error))
