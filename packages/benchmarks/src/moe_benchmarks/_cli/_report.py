"""`moe-bench report`."""

from pathlib import Path
from typing import Annotated

import typer

from moe_benchmarks._cli._common import fail, read_studies, write_pages
from moe_benchmarks._files import DamagedFileError
from moe_benchmarks._language._report import render_language
from moe_benchmarks._language._study import LANGUAGE
from moe_benchmarks._study_report import render_study
from moe_benchmarks._tune._storage import TRIAL


def report(
    studies: Annotated[
        list[Path],
        typer.Argument(help="Folders of `moe-bench tune` or `moe-bench distil`, or files of rows."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the two pages.")],
    title: Annotated[
        str, typer.Option(help="Heading of the page of studies of `tune`.")
    ] = "Sparse gates compared",
) -> None:
    """Make one page of result rows, as HTML and as Markdown."""
    try:
        rows = read_studies(studies, TRIAL, LANGUAGE)
        of_language = [set(row) >= LANGUAGE for row in rows]
        if any(of_language) and not all(of_language):
            fail("studies of `tune` and of `distil` have a report each: name those of one kind.")
        pages = render_language(rows) if any(of_language) else render_study(rows, title=title)
        page = write_pages(out, pages)
    except (DamagedFileError, OSError, ValueError) as error:
        fail(str(error))
    typer.echo(f"report: {page}")
