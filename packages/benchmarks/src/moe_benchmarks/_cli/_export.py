"""`moe-bench export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_benchmarks._cli._common import INTERRUPTED, DataDir, fail, names, write_pages
from moe_benchmarks._data._catalog import data_folder
from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._files import SETTINGS, read_json
from moe_benchmarks._language._exports import TARGETS, export_seed
from moe_benchmarks._language._report import render_language
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._students import DENSE, TRAINER
from moe_benchmarks._language._study import PRETRAINED, Cell, LanguageStudy
from moe_benchmarks._language._summary import variant_name
from moe_benchmarks._workers import only_one
from moe_runtime.onnx import ExportError


def export(
    study: Annotated[Path, typer.Argument(help="Folder of `moe-bench distil`.")],
    formats: Annotated[
        str, typer.Option(help=f"Of the weights, separated by commas: {', '.join(TARGETS)}.")
    ] = ",".join(TARGETS),
    seeds: Annotated[int, typer.Option(min=1, help="Export the models of so many seeds.")] = 1,
    data_dir: DataDir = None,
) -> None:
    """Export the models of a study to ONNX, score their answers, and time them beside the dense.

    The files are in STUDY/seed-N/ROUTER/onnx-FORMAT. What is done is kept, and the report has it.
    """
    unknown = [each for each in names(formats) if each not in TARGETS]
    if unknown:
        fail(f"`--formats` must be among {list(TARGETS)}, got {unknown}.")
    try:
        opened = _open(study, data_folder(data_dir))
        with only_one(study):
            for seed in range(seeds):
                for kind in names(formats):
                    _export(opened, seed, kind)
        page = write_pages(study, render_language(opened.rows()))
    except KeyboardInterrupt:
        typer.echo(f"stopped; what is done is in {study}. The same command continues it.")
        raise typer.Exit(INTERRUPTED) from None
    except (DataError, ExportError, ImportError, ValueError, OSError) as error:
        fail(str(error))
    typer.echo(f"report: {page}")


def _open(folder: Path, data_dir: Path) -> LanguageStudy:
    """Open a study as it was begun; its first dense model has the tokenizer."""
    path = folder / SETTINGS
    if not path.exists():
        msg = f"{folder} holds no study of `moe-bench distil`: it lacks {SETTINGS}."
        raise FileNotFoundError(msg)
    settings = read_json(path, "task", "num_rows", PRETRAINED)
    settings.pop("num_rows")
    pretrained = settings.pop(PRETRAINED)
    dense = folder / "seed-0" / DENSE
    if not (dense / "tokenizer_config.json").exists():
        msg = f"{dense} has no model with its tokenizer: only the rows of this study were kept."
        raise FileNotFoundError(msg)
    return LanguageStudy(
        LanguageSettings(**settings), str(dense), folder, data_dir, pretrained=pretrained
    )


def _export(study: LanguageStudy, seed: int, kind: str) -> None:
    rows = {
        row["variant"]: row
        for row in study.rows()
        if row["seed"] == seed and row["variant"] != TRAINER
    }
    if DENSE not in rows:
        fail(f"seed {seed} has no dense model yet to compare with: run `moe-bench distil` first.")
    if all(kind in row.get("exports", {}) for row in rows.values()):
        return

    def on_model(variant: str) -> None:
        typer.echo(f"seed {seed}, {variant_name(variant)}: exporting in {kind}")

    found = export_seed(study, [Cell(seed, variant) for variant in rows], kind, on_model)
    for variant, row in rows.items():
        study.add({**row, "exports": {**row.get("exports", {}), kind: found[variant]}})
        typer.echo(_line(Cell(seed, variant), found[variant], found[DENSE]))


def _line(cell: Cell, found: dict[str, Any], dense: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {value:.3f}" for name, value in found["scores"].items())
    times = ", ".join(
        f"{size} in {own:.1f} ms ({dense['milliseconds'][size] / own:.2f}x)"
        for size, own in found["milliseconds"].items()
    )
    return f"seed {cell.seed}, {variant_name(cell.variant)}: {scores}; {times}"
