"""What the commands share: options, and how they end."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

INTERRUPTED = 130  # what a shell reports for Ctrl-C

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the published data files.",
        show_default="$MOE_BENCH_DATA, or ~/.cache/moe-benchmarks",
    ),
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
