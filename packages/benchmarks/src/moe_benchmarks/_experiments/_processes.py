"""Several processes that train one model, each on its part of every batch.

Without `torchrun` there is one, and nothing here does anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from moe_benchmarks._data._dataset import Split
from moe_benchmarks._experiments._model import MixtureModel

T = TypeVar("T")


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started for the length of a block.

    Each has a device of its own where there are several: the block is told which.
    """
    if not distributed.is_torchelastic_launched():
        yield device
        return
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device)
    distributed.init_process_group(distributed.get_default_backend_for_device(device))
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process; 0 is the one that writes and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Return how many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        distributed.barrier()


def wrapped(model: MixtureModel) -> nn.Module:
    """Let the processes average their gradients; a single process needs nothing."""
    if count() == 1:
        return model
    # A relaxed permutation that is frozen gets no gradient any more.
    return DistributedDataParallel(
        model, broadcast_buffers=False, find_unused_parameters=model.soft is not None
    )


def part_of(batch: Split) -> Split:
    """Return this process's rows of a batch."""
    return batch if count() == 1 else batch.take(slice(rank(), None, count()))


def part_weights(whole: Split, part: Split) -> list[float]:
    """Weights of a part's means, by task and for the penalty at last.

    With them the mean over the processes is that over the batch, whose counted rows may lie
    unevenly.
    """
    if count() == 1:
        return [1.0] * (len(whole.targets) + 1)
    by_rows = len(part) / len(whole)
    shares = []
    for mine_T, all_T in zip(part.present, whole.present, strict=True):
        if mine_T is None or all_T is None:
            shares.append(by_rows)
        else:
            shares.append(int(mine_T.sum()) / max(1, int(all_T.sum())))
    return [count() * share for share in (*shares, by_rows)]


def summed(values: Tensor) -> Tensor:
    """Add up what the processes have."""
    if count() > 1:
        distributed.all_reduce(values)
    return values


def from_first(value: T) -> T:
    """Return what the first process has, so that all of them decide alike."""
    if count() == 1:
        return value
    values: list[T | None] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(values)
    (received,) = values
    assert received is not None
    return received


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers: permutations and tables."""
    if count() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)
