"""What a process of a distributed test does: a module that a new process can import."""

import os
import sys
from pathlib import Path

import torch
from _reference import DIM, awake
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from moe_runtime import CometRouter, Experts, MixtureOfExperts


def train_in_parallel(rank: int, folder: str) -> None:
    """Train on some rows, and save the gradients."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    mixture = MixtureOfExperts(awake(CometRouter(DIM, 5, k=2)), Experts(5, (DIM, 7, 4)))
    # Not find_unused_parameters: no parameter may be left without a gradient.
    parallel = DistributedDataParallel(mixture)
    x = torch.load(Path(folder) / "x.pt", weights_only=True)
    for _ in range(2):
        # The second process has one row: most of its experts have none.
        rows = x[:9] if rank == 0 else x[9:]
        output, penalty, _ = parallel(rows)
        torch.autograd.backward(output.square().sum() + penalty * len(rows))
    grads = {name: parameter.grad for name, parameter in mixture.named_parameters()}
    torch.save(grads, Path(folder) / f"grads{rank}.pt")
    distributed.barrier()
    # Without destructors: that of DistributedDataParallel (PyTorch 2.13) now and then waits for
    # gloo's thread while it holds the interpreter's lock, which that thread waits for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
