"""Read the command line, run one command, and turn errors into one line."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Never

from moe_runtime._cli import _bench, _export, _inspect, _lower, _verify
from moe_runtime.onnx._errors import ExportError
from moe_runtime.onnx._provider import runtime_errors

COMMANDS = (_export, _lower, _verify, _inspect, _bench)
# What the package raises for input that it refuses, and Python for files and modules.
ERRORS = (ImportError, OSError, RuntimeError, SyntaxError, TypeError, ValueError)
# Exit codes; the last two are what shells give a command that was interrupted, and one whose reader
# has left.
WRONG_MODEL, BAD_INPUT, INTERRUPTED, UNREAD = 1, 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> Never:
        """Leave with the reason and where the help is."""
        self.exit(BAD_INPUT, f"error: {message} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    """Build the parser of all commands."""
    parser = Parser(
        prog="moe-runtime",
        description="Export mixtures of experts to ONNX, and verify, inspect and time the models.",
        epilog="Exit codes: 0 done, 1 a model does not verify, 2 bad input, 130 interrupted "
        "once the packages are loaded, 141 not read to the end.",
    )
    parser.add_argument("--version", action="version", version=version("moe-runtime"))
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error was raised, not one line"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        added = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.__doc__,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = make_parser().parse_args(arguments)
    # What long exports say of their progress.
    logger, handler = logging.getLogger("moe_runtime"), logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        code: int = given.run(given)
        # What a pipe refuses is said here, not at Python's end.
        print(end="", flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Python would say so once more at its end.
        sys.stdout = None
        return UNREAD
    except _errors() as error:
        if given.traceback:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_MODEL if isinstance(error, ExportError) else BAD_INPUT
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return code


def _errors() -> tuple[type[Exception], ...]:
    """List what is said in one line, ONNX Runtime's where it has been imported."""
    return ERRORS if sys.modules.get("onnxruntime") is None else (*ERRORS, *runtime_errors())
