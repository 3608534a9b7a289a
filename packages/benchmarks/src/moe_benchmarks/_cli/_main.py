"""All commands of `moe-bench`."""

import typer

import moe_benchmarks
from moe_benchmarks._cli._compare import compare
from moe_benchmarks._cli._data import data
from moe_benchmarks._cli._distil import distil
from moe_benchmarks._cli._export import export
from moe_benchmarks._cli._list import list_experiments
from moe_benchmarks._cli._quickstart import quickstart
from moe_benchmarks._cli._report import report
from moe_benchmarks._cli._speed import speed
from moe_benchmarks._cli._train import train
from moe_benchmarks._cli._tune import tune

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Experiments with sparse mixtures of experts."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(moe_benchmarks.__version__)


app.command()(quickstart)
app.command()(data)
app.command("list")(list_experiments)
app.command()(train)
app.command()(tune)
app.command()(report)
app.command()(compare)
app.command()(speed)
app.command()(distil)
app.command()(export)
