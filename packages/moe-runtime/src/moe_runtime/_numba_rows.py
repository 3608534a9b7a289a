"""Compile loops over rows with numba, and share the rows among threads.

Imported at use: numba is an extra. Threads are Python's, which numba's code lets run beside
each other: its own are one pool a process, whose size is fixed at import, and which aborts
where two threads enter it or after a fork.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numba
import torch

F = TypeVar("F", bound=Callable[..., Any])
# Work for which a further thread is worth its start, which takes 0.1 ms.
NANOSECONDS_A_THREAD = 500_000


def compiled(*fastmath: str) -> Callable[[F], F]:
    """Compile at the first call, with these liberties of LLVM; kept on disk where possible."""

    def compile_later(function: F) -> F:
        # As NumPy divides by 0: a check for it would keep loops from being vectorised.
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath)}
        try:
            jitted: F = numba.njit(**options, cache=True)(function)
        except RuntimeError:  # Neither the package's folder nor the user's can be written.
            jitted = numba.njit(**options)(function)
        return jitted

    return compile_later


def over_rows(
    kernel: Callable[..., None], num_rows: int, nanoseconds_a_row: float, *args: object
) -> None:
    """Call ``kernel(start, stop, *args)`` for all rows, with at most as many threads as torch."""
    worthwhile = int(num_rows * nanoseconds_a_row / NANOSECONDS_A_THREAD)
    num_threads = max(1, min(torch.get_num_threads(), num_rows, worthwhile))
    if num_threads == 1:
        kernel(0, num_rows, *args)
        return
    bounds = [num_rows * part // num_threads for part in range(num_threads + 1)]
    with ThreadPoolExecutor(num_threads) as threads:
        parts = [threads.submit(kernel, start, stop, *args) for start, stop in pairwise(bounds)]
    for part in parts:
        part.result()
