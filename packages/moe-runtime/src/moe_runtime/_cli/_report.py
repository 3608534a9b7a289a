"""Print, write and draw timings."""

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_runtime import __version__
from moe_runtime._cli._latency import Timing, summarise
from moe_runtime._cli._table import format_table
from moe_runtime._requirements import require

PICTURES = (".png", ".svg", ".pdf")


def check_files(plot: Path | None, json_file: Path | None) -> None:
    """Refuse before minutes of timing what could not be written after them."""
    for path in (plot, json_file):
        if path is not None and not path.absolute().parent.is_dir():
            msg = f"{path} must be in a folder that exists."
            raise FileNotFoundError(msg)
        if path is not None and path.is_dir():
            msg = f"{path} must be a file to write, and is a folder."
            raise IsADirectoryError(msg)
    if plot is not None:
        if plot.suffix not in PICTURES:
            msg = f"`--plot` must end in one of {', '.join(PICTURES)}, got {plot}."
            raise ValueError(msg)
        require("matplotlib", extra="plots", purpose="--plot")


def report(
    timings: Sequence[Timing],
    settings: dict[str, Any],
    *,
    plot: Path | None,
    json_file: Path | None,
) -> None:
    """Print a table, and write what was asked for."""
    summaries = [summarise(timing) for timing in timings]
    print(_table(summaries))
    if json_file is not None:
        document = settings | _machine() | {"timings": summaries}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {json_file}")
    if plot is not None:
        from moe_runtime._cli._latency_plot import plot_latency  # noqa: PLC0415 - for --plot

        plot_latency(summaries, settings).savefig(plot, dpi=150)
        print(f"wrote {plot}")


def _table(summaries: Sequence[dict[str, Any]]) -> str:
    several = len({each["model"] for each in summaries}) > 1
    header = ["model", "rows", "median ms", "25 % .. 75 %", "rows/s", "rounds"]
    rows: list[list[object]] = []
    for each in summaries:
        low, high = each["quartiles_ms"]
        rows.append(
            [
                each["model"],
                each["batch_size"],
                _digits(each["median_ms"]),
                f"{_digits(low)} .. {_digits(high)}",
                f"{each['rows_per_second']:,.0f}",
                each["rounds"],
            ]
        )
        if several:
            rows[-1].append(f"{each['ratio_to_first']:.2f}x")
    table = format_table([*header, "time / first"] if several else header, rows)
    note = "time / first: the median of the ratios within a round; below 1x is faster"
    return f"{table}\n{note}" if several else table


def _digits(milliseconds: float) -> str:
    """Write three digits, and no exponent."""
    decimals = 3 if milliseconds < 1 else 2 if milliseconds < 10 else 1 if milliseconds < 100 else 0
    return f"{milliseconds:.{decimals}f}"


def _machine() -> dict[str, Any]:
    ort = require("onnxruntime", extra="onnx", purpose="bench")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {
            "moe_runtime": __version__,
            "onnxruntime": ort.__version__,
            "python": platform.python_version(),
        },
    }
