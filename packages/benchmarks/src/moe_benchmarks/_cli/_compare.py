"""`moe-bench compare`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from moe_benchmarks._cli._common import fail, read_studies
from moe_benchmarks._differences import Difference
from moe_benchmarks._files import DamagedFileError
from moe_benchmarks._language._study import LANGUAGE
from moe_benchmarks._statistics import Routing, TopShare
from moe_benchmarks._study_report._compare import Lead, behind, lead
from moe_benchmarks._study_report._findings import main_finding, signed
from moe_benchmarks._study_report._names import NO_SEARCH
from moe_benchmarks._study_report._study import Study, Variant, studies
from moe_benchmarks._tune._storage import TRIAL


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of `moe-bench tune`, or files of rows.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="GATE, or GATE+SEARCH, as `moe-bench list` names them: what you have now.",
            show_default="the variant with the lowest test loss",
        ),
    ] = None,
    routing: Annotated[
        Routing, typer.Option(help="trained, or hard: at most k experts a row.")
    ] = "trained",
) -> None:
    """Say on the terminal how variants of a study differ from one of them, and what is chance.

    Losses are those of the paper's statistic: the test loss of the 5 % of the trials with the
    lowest validation loss. A difference counts if its 95 % interval excludes 0 and a
    permutation test at 5 % agrees.
    """
    console = Console(markup=False, highlight=False)
    try:
        rows = read_studies(folders, TRIAL, LANGUAGE)
        if any(set(row) >= LANGUAGE for row in rows):
            fail("studies of `distil` are compared by `moe-bench report`; name those of `tune`.")
        found = studies(rows)
        # A baseline of none of the studies is said before anything is printed.
        compared = [_compare(study, to, routing) for study in found]
    except (DamagedFileError, OSError, ValueError) as error:
        fail(str(error))
    for study, gaps in zip(found, compared, strict=True):
        if gaps is None:
            console.print(f"{study.title}: all {len(study.rows)} trials failed.")
            continue
        console.print(_table(study, *gaps, routing))
        if to is None and routing == "trained":
            console.print(main_finding(study, Lead(*gaps)))


def _compare(
    study: Study, to: str | None, routing: Routing
) -> tuple[Variant, list[tuple[Variant, Difference]]] | None:
    """Find the variant to compare with, and compare the others; None if no trial is complete."""
    if to is None:
        first = lead(study, routing)
        return None if first is None else (first.best, first.behind)
    gate, _, search = to.partition("+")
    for variant in study.variants:
        if (variant.gate, variant.search) == (gate, search or NO_SEARCH):
            if not variant.complete:
                msg = f"all {len(variant.rows)} trials of {to} failed in {study.title}."
                raise ValueError(msg)
            return variant, behind(study, variant, routing)
    there = [f"{each.gate}+{each.search}" for each in study.variants]
    msg = f"`--to` must be a variant of {study.title}, one of {there}, got {to!r}."
    raise ValueError(msg)


def _table(
    study: Study, baseline: Variant, gaps: list[tuple[Variant, Difference]], routing: Routing
) -> Table:
    table = Table(title=f"{study.title}: test loss, {_how(routing)}, less that of {baseline.name}")
    table.add_column("variant")
    for name in ("trials", "test loss", "difference [95 %]", "chance"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    digits = study.decimals
    table.add_row(*_line(baseline, _top(baseline, routing), digits), "", "", "baseline")
    for variant, gap in gaps:
        table.add_row(
            *_line(variant, _top(variant, routing), digits),
            signed(gap, digits),
            f"{gap.chance:.3f}",
            _verdict(gap),
        )
    for variant in study.variants:
        if not variant.complete:
            table.add_row(variant.name, f"0 of {len(variant.rows)}", "", "", "", "failed")
    return table


def _line(variant: Variant, top: TopShare, digits: int) -> tuple[str, str, str]:
    complete, total = len(variant.complete), len(variant.rows)
    trials = f"{total}" if complete == total else f"{complete} of {total}"
    return variant.name, trials, f"{top.mean:.{digits}f}"


def _top(variant: Variant, routing: Routing) -> TopShare:
    return variant.top if routing == "trained" else variant.top_hard


def _how(routing: Routing) -> str:
    return "as trained" if routing == "trained" else "hard routing"


def _verdict(gap: Difference) -> str:
    if not gap.is_apart:
        return "not told apart"
    return "better" if gap.value < 0 else "worse"
