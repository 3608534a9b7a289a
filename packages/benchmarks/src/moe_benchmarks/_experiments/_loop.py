"""One training loop for all experiments: early stopping, best weights, exact resume."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_benchmarks._data._dataset import Dataset, Split, Task
from moe_benchmarks._experiments import _processes
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._losses import task_losses, total_loss
from moe_benchmarks._experiments._model import Prediction
from moe_benchmarks._experiments._run import Epoch, Run, Trained
from moe_benchmarks._experiments._searches import advance_relaxation
from moe_benchmarks._experiments._settings import TrialSettings

# Between the seeds of two processes, beyond those of all epochs of all runs.
PROCESS_STRIDE = 2**48


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
    run = Run(experiment, settings, dataset, checkpoint=checkpoint)
    parallel = _processes.wrapped(run.model)
    for number, epoch in enumerate(run.progress.history):
        on_epoch(number, epoch)
    while not run.is_over:
        number, order = run.next_epoch, run.begin_epoch()
        # Dropout, and gates that draw: in each process something else.
        torch.manual_seed(run.seed + _processes.rank() * PROCESS_STRIDE)
        begin = time.perf_counter()
        train_loss, penalty = _train_epoch(run, parallel, order, on_batch)
        on_epoch(number, run.end_epoch(train_loss, penalty, time.perf_counter() - begin))
    return run.trained()


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


def _train_epoch(
    run: Run, parallel: nn.Module, order: Tensor, on_batch: Callable[[int, int], None]
) -> tuple[float, float]:
    """Train on all rows once; returns the means of the loss and of the penalty over them."""
    settings, dataset = run.settings, run.dataset
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
            parallel, run.optimizer, dataset.tasks, weights, part, penalty_weight=penalty_weight
        )
        totals += torch.stack([loss, penalty]).double() * len(rows)
        advance_relaxation(run.model, settings)
        on_batch(number + 1, len(batches))
    # Each process's numbers are its part times the number of processes.
    means = _processes.summed(totals) / (len(order) * _processes.count())
    train_loss, penalty_mean = means.tolist()
    return train_loss, penalty_mean
