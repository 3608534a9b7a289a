"""The tests' own folder on the path, and one finished quickstart for all of them."""

import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import typer

# Models of the tests are too small to share among threads.
torch.set_num_threads(1)

# pytest's importlib mode leaves the tests' own folder off the path.
sys.path.insert(0, str(Path(__file__).parent))

from _tiny import TINY_OPTIONS, Done, Run

from moe_benchmarks._cli import app


@pytest.fixture(scope="session")
def moe_bench() -> Run:
    """Run `moe-bench` in this process: to start another takes longer than most of them."""

    def run(*arguments: str) -> Done:
        stdout, stderr = StringIO(), StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        with (
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            pytest.raises(SystemExit) as ended,
        ):
            typer.main.get_command(app)(list(arguments))
        signal.signal(signal.SIGTERM, handler)
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, stdout.getvalue(), stderr.getvalue())

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, moe_bench: Run) -> Path:
    """Return the folder of a tiny quickstart that was not interrupted; do not change it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    done = moe_bench("quickstart", f"--out={folder}", *TINY_OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder
