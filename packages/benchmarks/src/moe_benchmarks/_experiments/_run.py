"""A model in training between its epochs: searched, validated, saved, and known to be over."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments import _processes
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._metrics import validate
from moe_benchmarks._experiments._model import MixtureModel, build_model
from moe_benchmarks._experiments._searches import SearchStep, search_epoch
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._resumable import copy_state, epoch_seed, load_run, row_order, save_run
from moe_runtime import load_tensors


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
    # Wall time of training, without validation and search; of several runs that are trained
    # together, each has an equal part.
    seconds: float


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


class Run:
    """One training run, from the initial values or its checkpoint to its best epoch.

    Whoever trains an epoch calls `begin_epoch` before and `end_epoch` after it, until `is_over`.
    """

    def __init__(
        self,
        experiment: Experiment,
        settings: TrialSettings,
        dataset: Dataset,
        *,
        checkpoint: Path | None = None,
    ) -> None:
        self.settings, self.dataset, self.checkpoint = settings, dataset, checkpoint
        self.num_batches = -(-len(dataset.train) // settings.batch_size)  # of an epoch
        self.model = build_model(experiment, settings, dataset, steps_per_epoch=self.num_batches)
        self.model.to(dataset.device)
        self.optimizer = new_optimizer(self.model, settings.learning_rate)
        self.progress, self._best = Progress(), copy_state(self.model)
        if checkpoint is not None and checkpoint.exists():
            state, self._best = load_run(checkpoint, self.model, self.optimizer)
            self.progress.history = [Epoch(**epoch) for epoch in state["history"]]
            self.progress.searches = [SearchStep(**search) for search in state["searches"]]

    @property
    def is_over(self) -> bool:
        """Whether there is no epoch left to train."""
        return self.progress.is_over(self.settings)

    @property
    def next_epoch(self) -> int:
        """Number, 0-based, of the epoch that is trained, or to be trained."""
        return len(self.progress.history)

    @property
    def seed(self) -> int:
        """Seed of all that the next epoch draws."""
        return epoch_seed(self.settings.seed, self.next_epoch)

    def begin_epoch(self) -> Tensor:
        """Search where it is time to, and return the order of the next epoch's rows."""
        settings, train, number = self.settings, self.dataset.train, self.next_epoch
        order = row_order(settings.seed, number, len(train)).to(self.dataset.device)
        if 0 < number <= settings.search_epochs:
            some = order[: settings.search_rows]
            steps = search_epoch(
                self.model, settings, train, self.dataset.tasks, some, epoch=number
            )
            self.progress.searches += _processes.from_first(steps)
        _processes.share_buffers(self.model)
        return order

    def end_epoch(self, train_loss: float, penalty: float, seconds: float) -> Epoch:
        """Validate and record an epoch, keep the best one's weights, and save what is there.

        Raises
        ------
        DivergedError
            If a loss is not finite.
        """
        number = self.next_epoch
        found = _processes.from_first(
            validate(
                self.model, self.dataset.validation, self.dataset.tasks, self.settings.task_weights
            )
        )
        epoch = Epoch(train_loss, penalty, *found, seconds)
        if not (math.isfinite(train_loss) and math.isfinite(epoch.validation_loss)):
            msg = f"the loss of epoch {number + 1} is not finite: {epoch}."
            raise DivergedError(msg)
        self.progress.history.append(epoch)
        if self.progress.best_epoch == number:
            self._best = copy_state(self.model)
        if self.checkpoint is not None:
            self._save(self.checkpoint)
        return epoch

    def trained(self) -> Trained:
        """Return the model with the weights of its best epoch."""
        load_tensors(self.model, self._best)
        done = self.progress
        return Trained(self.model.eval(), done.history, done.searches, done.best_epoch)

    def _save(self, path: Path) -> None:
        if _processes.rank() == 0:
            done = self.progress
            save_run(path, self.model, self.optimizer, self._best, done.history, done.searches)
        _processes.wait()


def new_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Return Adam, fused: the embeddings' moments are most of a step's memory traffic."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
