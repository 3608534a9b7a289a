"""Evaluate a trained model: as trained, and with hard routing.

Axes: G gates (one a task), T rows, E experts, K slots (trees), Q nodes of a tree.
"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import moe_gates
from moe_benchmarks._bound import TooManyExpertsError
from moe_benchmarks._gates import Gate, inputs
from moe_benchmarks._model import TwoTaskModel
from moe_benchmarks._train import TrainedModel, task_loss
from moe_benchmarks._two_digits import NUM_CLASSES, TASKS, Split, TwoDigits
from moe_runtime import CometRouter, hard_routing


@dataclass(frozen=True)
class Metrics:
    """A model on a split."""

    loss: float  # nats, mean over rows and tasks
    accuracy: list[float]  # share of rows, one a task
    experts_per_row: float  # mean over rows and tasks
    most_experts: int  # of any row and task


@torch.no_grad()
def measure(model: TwoTaskModel, gate: Gate, split: Split, *, hard: bool, k: int) -> Metrics:
    """Measure a model on a split; with `hard`, refuse a row of more than `k` experts."""
    with hard_routing(model) if hard else nullcontext():
        prediction = model(*inputs(gate, split))
    active_GT = (prediction.weights_GTE != 0).sum(-1)
    most = int(active_GT.max())
    if hard and most > k:
        msg = f"{gate.name} used {most} experts for one row with hard routing, k={k}."
        raise TooManyExpertsError(msg)
    accuracy = [
        (logits.argmax(-1) == split.labels[:, task]).double().mean().item()
        for task, logits in enumerate(prediction.logits)
    ]
    return Metrics(
        loss=task_loss(prediction, split.labels).item(),
        accuracy=accuracy,
        experts_per_row=active_GT.double().mean().item(),
        most_experts=most,
    )


def evaluate(trained: TrainedModel, gate: Gate, data: TwoDigits, *, k: int) -> dict[str, Any]:
    """Collect everything that the report says of one trained model, as JSON can hold it."""
    model = trained.model
    metrics = {
        f"{split_name}_{routing}": asdict(measure(model, gate, split, hard=hard, k=k))
        for split_name, split in (("validation", data.validation), ("test", data.test))
        for routing, hard in (("trained", False), ("hard", True))
    }
    return {
        "gate": gate.name,
        "history": [asdict(epoch) for epoch in trained.history],
        "searches": [asdict(search) for search in trained.searches],
        "best_epoch": trained.best_epoch,
        "metrics": metrics,
        "load_by_class": _load_by_class(model, gate, data.test).tolist(),
        "trees": _trees(model, data.test),
    }


@torch.no_grad()
def _load_by_class(model: TwoTaskModel, gate: Gate, split: Split) -> Tensor:
    """Share of a class's rows that use each expert when hard: (tasks, classes, E)."""
    with hard_routing(model):
        weights_GTE = model(*inputs(gate, split)).weights_GTE
    return torch.stack(
        [
            torch.stack(
                [
                    moe_gates.expert_load(weights_GTE[task, split.labels[:, task] == digit])
                    for digit in range(NUM_CLASSES)
                ]
            )
            for task in range(len(TASKS))
        ]
    )


@torch.no_grad()
def _trees(model: TwoTaskModel, split: Split) -> list[dict[str, Any]]:
    """Trees of the first task's gate, if it is COMET: hard flow of the test rows, and experts."""
    router = model.mixture.routers[0]
    if not isinstance(router, CometRouter):
        return []
    goes_left_TKQ = router.split_scores(model.center(split.pixels)) >= 0
    order = moe_gates.leaf_order(router.num_experts)
    trees = []
    for slot in range(router.num_slots):
        share_Q = _node_shares(goes_left_TKQ[:, slot])
        expert_of_leaf = [0] * router.num_experts
        for position, leaf in enumerate(order):
            expert_of_leaf[leaf] = int(router.permutation[slot, position])
        trees.append({"node_shares": share_Q, "expert_of_leaf": expert_of_leaf})
    return trees


def _node_shares(goes_left_TN: Tensor) -> list[float]:
    """Share of rows that reaches each node, splits and leaves in heap order."""
    num_rows, num_splits = goes_left_TN.shape
    reaches = torch.zeros(2 * num_splits + 1, num_rows, dtype=torch.bool)
    reaches[0] = True
    for split in range(num_splits):
        left = goes_left_TN[:, split]
        reaches[2 * split + 1] = reaches[split] & left
        reaches[2 * split + 2] = reaches[split] & ~left
    return [float(share) for share in reaches.double().mean(1)]
