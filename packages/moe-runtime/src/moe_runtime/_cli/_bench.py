"""Time models on batches of several sizes, in turns, so that noise hits all of them alike.

Rows come from the examples of the first model, else they are drawn at random. Ctrl-C ends the
command with what has been measured. On a machine that does something else too, look at ratios.
"""

import argparse
import sys
from pathlib import Path

from moe_runtime._cli._arguments import parse_count, parse_counts, parse_positive

NAME = "bench"
HELP = "time one model, or several against each other"
EPILOG = """\
examples:
  moe-runtime bench exported --threads 1
  moe-runtime bench exported --against exported-int8 dense.onnx --plot latency.png
"""
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("path", metavar="FOLDER|FILE", help="an export, or an .onnx file")
    parser.add_argument(
        "--against", metavar="OTHER", nargs="+", default=[], help="models to time beside it"
    )
    parser.add_argument(
        "--batch-sizes",
        metavar="SIZES",
        type=parse_counts,
        default=[1, 8, 64, 512],
        help="rows, separated by commas (default: 1,8,64,512)",
    )
    parser.add_argument(
        "--threads", type=parse_count, help="within an operator (default: ONNX Runtime's choice)"
    )
    parser.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)"
    )
    parser.add_argument(
        "--seconds",
        type=parse_positive,
        default=1.0,
        help="for each model and size, or 7 rounds where those take longer (default: 1)",
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, help="draw latency by batch size, .png, .svg or .pdf"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write what was measured")


def run(given: argparse.Namespace) -> int:
    """Measure, and print, write and draw what there is."""
    # See `_lower`.
    from moe_runtime._cli import _latency, _report  # noqa: PLC0415

    _report.check_files(given.plot, given.json)
    names = [given.path, *given.against]
    models = _latency.open_models(names, provider=given.provider, num_threads=given.threads)
    rows = _latency.find_rows(given.path, models)
    timings: list[_latency.Timing] = []
    code = 0
    try:
        _latency.measure(timings, models, rows, sorted(set(given.batch_sizes)), given.seconds)
    except KeyboardInterrupt:
        print("interrupted: this is what was measured", file=sys.stderr)
        code = INTERRUPTED
    if timings:
        settings = {"provider": given.provider, "threads": given.threads}
        _report.report(timings, settings, plot=given.plot, json_file=given.json)
    return code
