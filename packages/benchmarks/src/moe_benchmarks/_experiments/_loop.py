"""One training loop for all experiments: early stopping, best weights, exact resume."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_benchmarks._data._dataset import Dataset, Split, Task
from moe_benchmarks._experiments import _processes
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._losses import task_losses, total_loss
from moe_benchmarks._experiments._metrics import validate
from moe_benchmarks._experiments._model import MixtureModel, Prediction, build_model
from moe_benchmarks._experiments._searches import SearchStep, finish_relaxation, search_epoch
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._resumable import copy_state, epoch_seed, load_run, row_order, save_run
from moe_runtime import load_tensors

# Between the seeds of two processes, beyond those of all epochs of all runs.
PROCESS_STRIDE = 2**48


class DivergedError(RuntimeError):
    """A loss is not finite."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch looked like; losses are weighted sums over the tasks, without penalties."""

    train_loss: float  # mean over its batches
    penalty: float  # mean over its batches
    # After it, as trained, on the validation rows; see `Validation`.
    validation_loss: float
    experts_per_row: float
    union_per_row: float
    dead_experts: list[int]
    largest_load: list[float]
    seconds: float  # wall time of training, without validation and search


@dataclass
class Progress:
    """How far a training run has come."""

    history: list[Epoch] = field(default_factory=list)
    searches: list[SearchStep] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Return the epoch, 0-based, of the lowest validation loss."""
        losses = [epoch.validation_loss for epoch in self.history]
        return losses.index(min(losses))

    def is_over(self, settings: TrialSettings) -> bool:
        """Whether there are no epochs left, or the loss has not fallen for long enough."""
        done = len(self.history)
        waited = done - 1 - self.best_epoch if done else 0
        return done >= settings.epochs or waited >= settings.patience


@dataclass
class Trained:
    """A model at its best epoch, and how it came about."""

    model: MixtureModel
    history: list[Epoch]
    searches: list[SearchStep]
    best_epoch: int


def fit(
    experiment: Experiment,
    settings: TrialSettings,
    dataset: Dataset,
    *,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda _done, _total: None,
    on_epoch: Callable[[int, Epoch], None] = lambda _number, _epoch: None,
) -> Trained:
    """Train until the validation loss no longer falls, and return the best epoch's weights.

    With `checkpoint`, every epoch is saved there, and a run that finds it continues from it,
    with the same numbers. `on_batch` is told of batches done and in the epoch, `on_epoch` of
    each epoch. Under `torchrun` each process takes its part of every batch; the numbers are
    those of one process up to rounding, where nothing is drawn in training.
    """
    num_rows = len(dataset.train)
    num_batches = -(-num_rows // settings.batch_size)
    model = build_model(experiment, settings, dataset, steps_per_epoch=num_batches)
    model.to(dataset.device)
    optimizer = new_optimizer(model, settings.learning_rate)
    parallel = _processes.wrapped(model)
    progress, best = Progress(), copy_state(model)
    if checkpoint is not None and checkpoint.exists():
        state, best = load_run(checkpoint, model, optimizer)
        progress.history = [Epoch(**epoch) for epoch in state["history"]]
        progress.searches = [SearchStep(**search) for search in state["searches"]]
    for number, epoch in enumerate(progress.history):
        on_epoch(number, epoch)
    while not progress.is_over(settings):
        number = len(progress.history)
        order = row_order(settings.seed, number, num_rows).to(dataset.device)
        if 0 < number <= settings.search_epochs:
            some = order[: settings.search_rows]
            steps = search_epoch(model, settings, dataset.train, dataset.tasks, some, epoch=number)
            progress.searches += _processes.from_first(steps)
        _processes.share_buffers(model)
        # Dropout, and gates that draw: in each process something else.
        torch.manual_seed(epoch_seed(settings.seed, number) + _processes.rank() * PROCESS_STRIDE)
        begin = time.perf_counter()
        train_loss, penalty = _train_epoch(
            model, parallel, optimizer, settings, dataset, order, on_batch
        )
        seconds = time.perf_counter() - begin
        found = _processes.from_first(
            validate(model, dataset.validation, dataset.tasks, settings.task_weights)
        )
        epoch = Epoch(train_loss, penalty, *found, seconds)
        if not (math.isfinite(train_loss) and math.isfinite(epoch.validation_loss)):
            msg = f"the loss of epoch {number + 1} is not finite: {epoch}."
            raise DivergedError(msg)
        progress.history.append(epoch)
        if progress.best_epoch == number:
            best = copy_state(model)
        if checkpoint is not None:
            if _processes.rank() == 0:
                save_run(checkpoint, model, optimizer, best, progress.history, progress.searches)
            _processes.wait()
        on_epoch(number, epoch)
    load_tensors(model, best)
    return Trained(model.eval(), progress.history, progress.searches, progress.best_epoch)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tasks: Sequence[Task],
    task_weights: Sequence[float],
    batch: Split,
    *,
    penalty_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Prediction]:
    """Take one step; returns the loss without the penalty, the penalty, and the prediction."""
    prediction: Prediction = model(batch.inputs)
    loss = total_loss(task_losses(tasks, prediction.outputs, batch), task_weights)
    penalty = penalty_weight * prediction.penalty
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss + penalty)
    optimizer.step()
    return loss.detach(), penalty.detach(), prediction


def new_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return Adam, fused: the embeddings' moments are most of a step's memory traffic."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)


def _train_epoch(
    model: MixtureModel,
    parallel: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrialSettings,
    dataset: Dataset,
    order: Tensor,
    on_batch: Callable[[int, int], None],
) -> tuple[float, float]:
    parallel.train()
    batches = torch.split(order, settings.batch_size)
    # Summed on the device, which nothing waits for.
    totals = order.new_zeros(2, dtype=torch.float64)
    for number, rows in enumerate(batches):
        batch = dataset.train.take(rows)
        part = _processes.part_of(batch)
        *shares, penalty_weight = _processes.part_weights(batch, part)
        weights = [a * b for a, b in zip(settings.task_weights, shares, strict=True)]
        loss, penalty, _ = train_step(
            parallel, optimizer, dataset.tasks, weights, part, penalty_weight=penalty_weight
        )
        totals += torch.stack([loss, penalty]).double() * len(rows)
        if model.soft is not None and not model.soft.frozen:
            model.soft.done_steps += 1
            if model.soft.done_steps >= model.soft.relaxation.num_steps:
                finish_relaxation(model, settings)
        on_batch(number + 1, len(batches))
    # Each process's numbers are its part times the number of processes.
    means = _processes.summed(totals) / (len(order) * _processes.count())
    train_loss, penalty_mean = means.tolist()
    return train_loss, penalty_mean
