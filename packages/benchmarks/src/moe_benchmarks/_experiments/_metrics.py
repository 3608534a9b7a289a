"""Measure a model on a split, as trained and with hard routing.

Axes: T rows, G gates (one a task), E experts.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import moe_gates
from moe_benchmarks._bound import TooManyExpertsError
from moe_benchmarks._data._dataset import Split, Task
from moe_benchmarks._experiments._losses import mean_loss, task_losses
from moe_benchmarks._experiments._model import MixtureModel
from moe_runtime import hard_routing

EVALUATION_ROWS = 8192  # at a time


@torch.no_grad()
def predict(model: MixtureModel, split: Split, *, hard: bool) -> tuple[list[Tensor], Tensor]:
    """Predict all rows in evaluation mode: outputs a task, and weights (G, T, E)."""
    model.eval()
    outputs, weights = [], []
    with hard_routing(model) if hard else nullcontext():
        for start in range(0, len(split), EVALUATION_ROWS):
            some = slice(start, start + EVALUATION_ROWS)
            prediction = model(split.take(some).inputs)
            outputs.append(prediction.outputs)
            weights.append(prediction.weights_GTE)
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)], torch.cat(weights, 1)


def measure(
    model: MixtureModel,
    split: Split,
    tasks: tuple[Task, ...],
    task_weights: tuple[float, ...],
    *,
    hard: bool,
    k: int,
) -> tuple[dict[str, Any], Tensor]:
    """Measure everything that a result row says of a split, and return the weights too."""
    outputs, weights_GTE = predict(model, split, hard=hard)
    active_GT = (weights_GTE != 0).sum(-1)
    most = int(active_GT.max())
    if hard and most > k:
        msg = f"hard routing used {most} experts for one row, k={k}."
        raise TooManyExpertsError(msg)
    by_task = {
        task.name: _task_metrics(task, output, target, present)
        for task, output, target, present in zip(
            tasks, outputs, split.targets, split.present, strict=True
        )
    }
    losses = zip(by_task.values(), task_weights, strict=True)
    numbers = {
        "loss": sum(weight * metrics["loss"] for metrics, weight in losses),
        "tasks": by_task,
        "experts_per_row": active_GT.double().mean().item(),
        "most_experts": most,
        "union_per_row": moe_gates.count_union(weights_GTE.transpose(0, 1)).double().mean().item(),
        "dead_experts": [int(moe_gates.dead_experts(each).sum()) for each in weights_GTE],
    }
    return numbers, weights_GTE


class Validation(NamedTuple):
    """What training is watched by, as trained, penalties left out."""

    loss: float  # weighted sum over the tasks
    experts_per_row: float  # mean over rows and tasks
    union_per_row: float  # mean over rows: experts of any task
    dead_experts: list[int]  # of each task: experts that no row uses
    largest_load: list[float]  # of each task: share of the rows that the busiest expert has


def validate(
    model: MixtureModel,
    split: Split,
    tasks: tuple[Task, ...],
    task_weights: tuple[float, ...],
) -> Validation:
    """Measure what each epoch is followed by."""
    outputs, weights_GTE = predict(model, split, hard=False)
    losses = zip(task_losses(tasks, outputs, split), task_weights, strict=True)
    used_GTE = (weights_GTE != 0).double()
    load_GE = used_GTE.mean(1)
    return Validation(
        loss=sum(weight * loss.item() for loss, weight in losses),
        experts_per_row=used_GTE.sum(-1).mean().item(),
        union_per_row=used_GTE.amax(0).sum(-1).mean().item(),
        dead_experts=(load_GE == 0).sum(-1).tolist(),
        largest_load=load_GE.amax(-1).tolist(),
    )


def _task_metrics(
    task: Task, output_TC: Tensor, target_T: Tensor, present_T: Tensor | None
) -> dict[str, float]:
    metrics = {"loss": mean_loss(task, output_TC, target_T, present_T).item()}
    counted = slice(None) if present_T is None else present_T
    output_TC, target_T = output_TC[counted], target_T[counted]
    if task.kind == "classes":
        metrics["accuracy"] = (output_TC.argmax(-1) == target_T).double().mean().item()
    elif task.kind == "binary" and 0 < target_T.mean() < 1:
        metrics["auc"] = float(roc_auc_score(target_T.cpu(), output_TC[:, 0].float().cpu()))
    return metrics
