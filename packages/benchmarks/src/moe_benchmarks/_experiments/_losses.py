"""Losses of the tasks, row by row and together.

Axes: T rows, C outputs of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_benchmarks._data._dataset import Split, Task


def row_losses(task: Task, output_TC: Tensor, target_T: Tensor, present_T: Tensor | None) -> Tensor:
    """Loss of each row, (T,): nats, or squared errors; 0 where a row does not count."""
    output_TC = output_TC.float()
    if task.kind == "classes":
        losses_T = F.cross_entropy(output_TC, target_T, reduction="none")
    elif task.kind == "binary":
        losses_T = F.binary_cross_entropy_with_logits(output_TC[:, 0], target_T, reduction="none")
    else:
        losses_T = (output_TC[:, 0] - target_T).square()
    return losses_T if present_T is None else torch.where(present_T, losses_T, 0)


def mean_loss(task: Task, output_TC: Tensor, target_T: Tensor, present_T: Tensor | None) -> Tensor:
    """Mean over the rows that count; 0 where none does."""
    losses_T = row_losses(task, output_TC, target_T, present_T)
    count = max(losses_T.shape[0], 1) if present_T is None else present_T.sum().clamp(min=1)
    return losses_T.sum() / count


def task_losses(tasks: Sequence[Task], outputs: Sequence[Tensor], split: Split) -> list[Tensor]:
    """Mean loss of each task on the rows of a split."""
    return [
        mean_loss(*each) for each in zip(tasks, outputs, split.targets, split.present, strict=True)
    ]


def total_loss(losses: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted sum over the tasks."""
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()
