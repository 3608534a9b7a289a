"""The command `moe-runtime`, run in this process."""

from typing import NamedTuple

import pytest

from moe_runtime._cli import main


class Done(NamedTuple):
    """What a command has left."""

    code: int
    out: str
    err: str


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run the command with these arguments."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # as argparse leaves
        code = int(str(left.code))
    return Done(code, *capsys.readouterr())


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line that a command leaves with."""
    done = run_command(capsys, *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    return done.err.removeprefix("error: ").strip()
