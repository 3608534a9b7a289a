"""What makes a run resumable: a checkpoint an epoch, and an order that can be drawn again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe_runtime import (
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    training_tensors,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Prefix of the best epoch's weights in a checkpoint.
BEST = "best."
SEED_STRIDE = 100_003


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of all that an epoch of a run draws."""
    return seed * SEED_STRIDE + epoch


def row_order(seed: int, epoch: int, num_rows: int) -> Tensor:
    """Order of an epoch's rows; a function of the seed and the epoch, so it resumes."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    return torch.randperm(num_rows, generator=generator)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy the state of a model, which training goes on changing."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def save_run(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
    history: "Sequence[DataclassInstance]",
    searches: "Sequence[DataclassInstance]",
) -> None:
    """Save what a run continues from: its last epoch, its best one's weights, and its records."""
    tensors = training_tensors(model, optimizer)
    tensors |= {BEST + name: tensor for name, tensor in best.items()}
    state: dict[str, Any] = {
        "history": [asdict(epoch) for epoch in history],
        "searches": [asdict(search) for search in searches],
    }
    save_checkpoint(path, tensors, settings=state)


def load_run(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Continue from a checkpoint: its records, and the best epoch's weights."""
    tensors, state = load_checkpoint(path)
    now = {name: each for name, each in tensors.items() if not name.startswith(BEST)}
    load_training_tensors(model, optimizer, now)
    return state, best_tensors(tensors)


def best_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pick the weights of the best epoch from a run's checkpoint."""
    return {
        name.removeprefix(BEST): tensor for name, tensor in tensors.items() if name.startswith(BEST)
    }
