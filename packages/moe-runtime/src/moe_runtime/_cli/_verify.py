"""Compare an export with the PyTorch answers stored in it, on this machine, without PyTorch.

Every file must be what was written, to the bit. Then ONNX Runtime answers the stored example
rows in batches of 0 to 700, with several threads and more than once. Exit code 1 says that the
answers are further from PyTorch's than the tolerance.
"""

import argparse

from moe_runtime._cli._arguments import parse_count, parse_positive
from moe_runtime._cli._table import format_errors

NAME = "verify"
HELP = "compare an export with its stored PyTorch answers"
EPILOG = "example: moe-runtime verify exported --threads 4"
DIFFERS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("folder", metavar="FOLDER", help="what `moe-runtime export` has written")
    parser.add_argument("--threads", type=parse_count, default=2, help="default: 2")
    parser.add_argument(
        "--repeats", type=parse_count, default=3, help="runs of each batch (default: 3)"
    )
    parser.add_argument(
        "--tolerance", type=parse_positive, help="largest error (default: that of the export)"
    )


def run(given: argparse.Namespace) -> int:
    """Verify, and say how it went."""
    from moe_runtime.onnx import verify  # noqa: PLC0415 - see `_lower`

    result = verify(
        given.folder,
        num_threads=given.threads,
        repeats=given.repeats,
        tolerance=given.tolerance,
    )
    print(format_errors(result.output_errors))
    verdict = "within" if result.holds else "NOT within"
    print(f"largest error {result.largest_error:.2g}: {verdict} {result.tolerance:g}")
    return 0 if result.holds else DIFFERS
