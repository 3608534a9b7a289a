"""Processes of one command on one machine: one command a folder, workers that end with it."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows has another way, and a study there is one process's own
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
POLL_SECONDS = 0.5


class BusyFolderError(ValueError):
    """Another process is at work in a folder."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder against a second command; one that is killed lets go of it."""
    with (folder / LOCK).open("w") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                msg = f"another command is at work in {folder}; see --workers to share its work."
                raise BusyFolderError(msg) from None
        yield


@contextmanager
def running(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Run processes for the length of a block; what still runs at its end is ended."""
    # A kill that can be caught is a Ctrl-C, which ends the block.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        signal.signal(signal.SIGTERM, before)


def threads_of_each(num_workers: int) -> int:
    """Return how many of PyTorch's threads each of some workers has."""
    return max(1, torch.get_num_threads() // num_workers)


def become_worker(parent: int, threads: int) -> None:
    """Leave Ctrl-C to the parent, which ends its workers, and end soon after it, however it ends.

    A worker that outlives its parent would never be collected.
    """
    # Ctrl-C reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
