"""What is done about permutations beside training, epoch by epoch.

Axes: T rows, E experts, G gates (one a task), O features of an expert's output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from moe_benchmarks._data._dataset import Split, Task
from moe_benchmarks._experiments._losses import row_losses
from moe_benchmarks._experiments._model import MixtureModel
from moe_benchmarks._experiments._settings import TrialSettings
from moe_localsearch import IdAssignment, SearchResult, assign_ids
from moe_runtime import HashRouter, Router, SearchRows, search_permutations

# What an exact search finds must gain this many standard errors, on rows that it has not seen.
CONFIRMED_FROM = 2.0

RowLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SearchStep:
    """What one search did; costs are mean losses of the task, or of all where it is None."""

    epoch: int  # epochs of training before it
    task: str | None
    cost_before: float  # on the rows that were searched
    cost_after: float
    gain: float  # on the rows that confirm, mean over rows
    standard_error: float
    accepted: bool
    num_moved: int  # positions, or ids, with another expert than before


@torch.no_grad()
def search_epoch(
    model: MixtureModel,
    settings: TrialSettings,
    split: Split,
    tasks: tuple[Task, ...],
    rows: Tensor,
    *,
    epoch: int,
) -> list[SearchStep]:
    """Search on some training rows, with the model in evaluation mode, and set what is confirmed.

    The relaxed search needs nothing here: it is trained with the rest.
    """
    if settings.search not in ("exact", "exact-shared", "ids"):
        return []
    model.eval()
    some = split.take(rows)
    losses: list[RowLoss] = [
        _row_loss(model, some, task, index, weight)
        for index, (task, weight) in enumerate(zip(tasks, settings.task_weights, strict=True))
    ]
    x_TD, router_input = model.bottom(some.inputs), model.router_input(some.inputs)
    if settings.search == "ids":
        assert router_input is not None
        return _assign_ids(model, x_TD, router_input, losses, tasks, epoch)
    searched = SearchRows(x_TD, losses, router_input)
    per: Literal["mixture", "slot"] = "mixture" if settings.search == "exact-shared" else "slot"
    before = [router.get_buffer("permutation").clone() for router in model.mixture.routers]
    results = search_permutations(
        model.mixture, searched, per=per, num_standard_errors=CONFIRMED_FROM
    )
    steps = []
    for gate, result in results.items():
        num_moved = int((torch.from_numpy(result.permutation) != before[gate].cpu()).sum())
        task = None if per == "mixture" else tasks[gate].name
        steps.append(_step(epoch, task, result, num_moved))
    return steps[:1] if per == "mixture" else steps


def advance_relaxation(model: MixtureModel, settings: TrialSettings, *, num_steps: int = 1) -> None:
    """Make a soft permutation colder by some steps of training, and freeze it after its last."""
    if model.soft is None or model.soft.frozen:
        return
    model.soft.done_steps += num_steps
    if model.soft.done_steps >= model.soft.relaxation.num_steps:
        _finish_relaxation(model, settings)


def _finish_relaxation(model: MixtureModel, settings: TrialSettings) -> None:
    """Set the learned permutation; the ablation without it keeps the identity."""
    assert model.soft is not None
    if settings.search == "relaxed":
        permutation = model.soft.permutation()
        for router in model.mixture.routers:
            assert isinstance(router, Router)
            router.set_permutation(permutation.expand(router.num_slots, -1))
    model.soft.frozen.fill_(1)


def _assign_ids(
    model: MixtureModel,
    x_TD: Tensor,
    ids_T: Tensor,
    losses: Sequence[RowLoss],
    tasks: tuple[Task, ...],
    epoch: int,
) -> list[SearchStep]:
    """Give each id its best expert, for each task: one assignment with capacities."""
    outputs_ETO = model.mixture.experts.every(x_TD)
    all_rows = torch.arange(len(ids_T), device=ids_T.device)
    confirm_rows = np.arange(len(ids_T) // 2, len(ids_T))
    steps = []
    for gate, task in enumerate(tasks):
        router = model.mixture.routers[gate]
        assert isinstance(router, HashRouter)
        costs_TE = torch.stack([losses[gate](y_TO, all_rows) for y_TO in outputs_ETO], 1)
        found = assign_ids(
            ids_T.cpu().numpy(),
            costs_TE.double().cpu().numpy(),
            table=router.table.cpu().numpy(),
            move_standard_errors=1.0,
            confirm_rows=confirm_rows,
            num_standard_errors=CONFIRMED_FROM,
        )
        router.table.copy_(torch.from_numpy(found.table))
        steps.append(_step(epoch, task.name, found, int(found.num_moved)))
    return steps


def _step(
    epoch: int, task: str | None, found: SearchResult | IdAssignment, num_moved: int
) -> SearchStep:
    assert found.confirmation is not None
    return SearchStep(
        epoch=epoch,
        task=task,
        cost_before=float(found.cost_before),
        cost_after=float(found.cost_after),
        gain=float(found.confirmation.gain),
        standard_error=float(found.confirmation.standard_error),
        accepted=bool(found.confirmation.accepted),
        num_moved=num_moved,
    )


def _row_loss(model: MixtureModel, split: Split, task: Task, index: int, weight: float) -> RowLoss:
    """Return a task's weighted loss of some rows of a split."""
    targets_T, present_T = split.targets[index], split.present[index]

    def loss(output_RO: Tensor, some_R: Tensor) -> Tensor:
        here = None if present_T is None else present_T[some_R]
        return weight * row_losses(task, model.heads[index](output_RO), targets_T[some_R], here)

    return loss
