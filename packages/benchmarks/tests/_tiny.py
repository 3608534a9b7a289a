"""A quickstart small enough for tests: seconds, but every part of the whole."""

import sys
from collections.abc import Callable
from typing import NamedTuple

from moe_benchmarks import QuickstartSettings

TINY = QuickstartSettings(
    num_seeds=1,
    epochs=3,
    num_experts=5,
    num_train=600,
    num_validation=200,
    num_test=200,
    search_rows=300,
)
# The same as options of the command.
TINY_OPTIONS = [
    f"--{name.replace('_', '-')}={getattr(TINY, name)}"
    for name in ("num_seeds", "epochs", "num_experts", "num_train", "num_validation", "num_test")
] + ["--search-rows=300"]


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


def command(*arguments: str) -> list[str]:
    """Return the command line of `moe-bench` in this environment."""
    return [sys.executable, "-c", "from moe_benchmarks._cli import app; app()", *arguments]
