"""The tests' own folder on the path, and one finished quickstart for all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Models of the tests are too small to share among threads.
torch.set_num_threads(1)

# pytest's importlib mode leaves the tests' own folder off the path.
sys.path.insert(0, str(Path(__file__).parent))

from _tiny import TINY_OPTIONS, Run, command


@pytest.fixture(scope="session")
def moe_bench() -> Run:
    """Run `moe-bench` to its end."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, moe_bench: Run) -> Path:
    """Return the folder of a tiny quickstart that was not interrupted; do not change it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    done = moe_bench("quickstart", f"--out={folder}", *TINY_OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder
