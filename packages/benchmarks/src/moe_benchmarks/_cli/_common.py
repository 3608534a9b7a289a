"""What the commands share: options, and how they end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from moe_benchmarks._files import write_text
from moe_benchmarks._tune._storage import ROWS, Row, read_rows

INTERRUPTED = 130  # what a shell reports for Ctrl-C

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the published data files.",
        show_default="$MOE_BENCH_DATA, or ~/.cache/moe-benchmarks",
    ),
]
Device = Annotated[
    str, typer.Option(help="Where to train, as PyTorch names it: cpu, cuda, cuda:1, ...")
]
Share = Annotated[
    float, typer.Option(help="Share of the users, or of the pictures, to use: in (0, 1].")
]
Epochs = Annotated[
    int | None, typer.Option(help="Epochs at most.", show_default="the experiment's")
]
Patience = Annotated[
    int | None,
    typer.Option(help="Epochs without a lower validation loss.", show_default="the experiment's"),
]


def fail(message: str) -> NoReturn:
    """End with an error that is the caller's to mend."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)


def names(text: str) -> tuple[str, ...]:
    """Split a list with commas, each name once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def read_studies(places: Sequence[Path], *forms: frozenset[str]) -> list[Row]:
    """Read the rows of folders of studies, and of files; see `read_rows`.

    Raises
    ------
    DamagedFileError
        If a file cannot be read.
    ValueError
        If there is no row yet.
    """
    files = [place / ROWS if place.is_dir() else place for place in places]
    rows = [row for file in files for row in read_rows(file, *forms)]
    if not rows:
        msg = f"there is no result row in {', '.join(map(str, places))} yet."
        raise ValueError(msg)
    return rows


def write_pages(folder: Path, pages: tuple[str, str]) -> Path:
    """Write a report as HTML and as Markdown; return where the HTML is."""
    html, markdown = (folder / f"report.{suffix}" for suffix in ("html", "md"))
    for path, text in zip((html, markdown), pages, strict=True):
        write_text(path, text)
    return html
