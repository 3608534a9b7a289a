"""`moe-bench speed`."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from moe_benchmarks._cli._common import DataDir, Device, Share, fail, names
from moe_benchmarks._data._catalog import load
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._device import find_device
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import GATES, PAPER_GATES
from moe_benchmarks._experiments._row import made_with
from moe_benchmarks._files import write_json
from moe_benchmarks._speed._measure import Speed, measure_speed
from moe_benchmarks._speed._stacked import StackSpeed, measure_stack


def speed(
    experiment: Annotated[
        str, typer.Argument(help="As `moe-bench list` names it: its sizes and its data.")
    ] = "movielens-1m",
    gates: Annotated[str, typer.Option(help="Gates, separated by commas.")] = ",".join(PAPER_GATES),
    seconds: Annotated[float, typer.Option(min=0.0, help="For each line of the table.")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of PyTorch.", show_default="PyTorch's own")
    ] = None,
    stack: Annotated[
        int,
        typer.Option(min=1, help="Time so many trials together, as `tune --stack`, beside one."),
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
    share: Share = 1.0,
    device: Device = "cpu",
    data_dir: DataDir = None,
) -> None:
    """Time training steps, beside the same model as published: every expert for every row.

    Gates whose decisions harden in training are timed as they begin, and hardened. The floor
    is the arithmetic of what is selected, at the rate of a large product. With --stack the
    steps of several trials together are timed instead, beside those of one.
    """
    if experiment not in EXPERIMENTS:
        fail(f"the experiment must be one of {list(EXPERIMENTS)}, got {experiment!r}.")
    unknown = [gate for gate in names(gates) if gate not in GATES]
    if unknown or not names(gates):
        fail(f"`--gates` must be among {list(GATES)}, got {unknown or 'none'}.")
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(highlight=False)
    chosen = EXPERIMENTS[experiment]
    try:
        where = find_device(device)
        dataset = load(chosen.dataset, data_dir, share=share, device=where)
        found: list[Speed | StackSpeed] = []
        for gate in names(gates):
            with console.status(f"timing {gate}"):
                if stack == 1:
                    found += measure_speed(chosen, dataset, gate, seconds=seconds)
                else:
                    found.append(measure_stack(chosen, dataset, gate, stack, seconds=seconds))
        if out is not None:
            rows = [each.to_dict() for each in found]
            about = {"experiment": experiment, "threads": torch.get_num_threads()}
            write_json(out, {**about, **made_with(where), "rows": rows})
    except (DataError, ImportError, ValueError, OSError, RuntimeError) as error:
        fail(str(error))
    alone = [each for each in found if isinstance(each, Speed)]
    together = [each for each in found if isinstance(each, StackSpeed)]
    console.print(_table(alone) if alone else _stack_table(together))
    if out is not None:
        console.print(f"numbers: {out}", soft_wrap=True, markup=False)


def _table(found: list[Speed]) -> Table:
    """Lay out what a reader compares."""
    table = Table(title=f"Training, batches of {found[0].batch_size} rows")
    table.add_column("gate", no_wrap=True)
    for name in ("experts a row", "rows/s", "published", "faster", "of the floor", "epoch"):
        table.add_column(name, justify="right")
    for each in found:
        state = ", hardened" if each.hardened else ""
        table.add_row(
            GATES[each.gate].name + state,
            f"{each.experts_per_row:.2f}",
            f"{each.rows_per_second:,.0f}",
            f"{each.published_rows_per_second:,.0f}",
            f"{each.ratio:.1f}x",
            f"{each.floor_milliseconds / each.milliseconds:.0%}",
            f"{each.epoch_seconds:.0f} s",
        )
    return table


def _stack_table(found: list[StackSpeed]) -> Table:
    """Lay out what trials together take, and what one takes."""
    first = found[0]
    table = Table(title=f"{first.stack} trials, batches of {first.batch_size} rows")
    table.add_column("gate", no_wrap=True)
    for name in ("ms a step, one", "all together", "faster", "operations, one", "all together"):
        table.add_column(name, justify="right")
    for each in found:
        table.add_row(
            GATES[each.gate].name,
            f"{each.milliseconds:,.1f}",
            f"{each.stacked_milliseconds:,.1f}",
            f"{each.ratio:.2f}x",
            f"{each.operations:,}",
            f"{each.stacked_operations:,}",
        )
    return table
