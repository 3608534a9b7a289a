"""Write an export again for another target, without its PyTorch model.

The export must have been made with --canonical. The new model is verified against the answers
stored in it, and written only if it agrees.
"""

import argparse

from moe_runtime._cli._arguments import TARGET_HELP, TARGETS, parse_positive
from moe_runtime._cli._table import format_verification

NAME = "lower"
HELP = "write an export again for another target"
EPILOG = "example: moe-runtime lower exported exported-int8 --target int8"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("source", metavar="FOLDER", help="an export made with --canonical")
    parser.add_argument("folder", metavar="OUT", help="folder to write")
    parser.add_argument("--target", choices=TARGETS, required=True, help=TARGET_HELP)
    parser.add_argument(
        "--tolerance", type=parse_positive, help="largest error (default: that of the target)"
    )


def run(given: argparse.Namespace) -> int:
    """Lower, and say how far the new model is from PyTorch."""
    # Not for --help: the other commands' packages take seconds to import.
    from moe_runtime.onnx import lower  # noqa: PLC0415

    verification = lower(given.source, given.folder, target=given.target, tolerance=given.tolerance)
    print(f"wrote {given.folder} for the target {given.target}")
    print(format_verification(verification))
    return 0
