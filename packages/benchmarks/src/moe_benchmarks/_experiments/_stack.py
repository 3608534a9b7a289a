"""Epochs of several runs at once: their models as one, what differs along a first axis.

A step of one model is some hundred operations on little data, which a GPU should finish sooner
than they are launched. Stacked, hardly more operations do the work of all runs.

Axes: S runs, T rows of a batch, N parameters of a model, G gates, E experts, O features of an
expert's output.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import moe_gates
from moe_benchmarks._data._dataset import Split
from moe_benchmarks._experiments._losses import task_losses, total_loss
from moe_benchmarks._experiments._model import MixtureModel, Prediction
from moe_benchmarks._experiments._run import Run, new_optimizer
from moe_benchmarks._experiments._searches import advance_relaxation
from moe_benchmarks._experiments._stacked_adam import VALUE, StackedAdam
from moe_runtime import CometRouter, Decision, DSelectKRouter

ENTROPY_WEIGHT = "entropy_weight"


class StackedRun:
    """A run whose parameters, and Adam's moments of each, lie in one tensor (3, N).

    It is trained by `train_together` only, and saves no checkpoint. Between two epochs it is used
    as a `Run`.
    """

    def __init__(self, run: Run) -> None:
        assert run.checkpoint is None, "its optimizer does not know the moments"
        self.run = run
        self.num_steps = 0
        named = dict(run.model.named_parameters())
        flat_N = torch.cat([each.detach().flatten() for each in named.values()])
        self.values = torch.stack([flat_N, torch.zeros_like(flat_N), torch.zeros_like(flat_N)])
        parts = list(_parts(self.values[VALUE], run.model))
        for name, part in zip(named, parts, strict=True):
            module, _, own = name.rpartition(".")
            setattr(run.model.get_submodule(module), own, nn.Parameter(part))
        # The optimiser would keep the parameters that were.
        run.optimizer = new_optimizer(run.model, run.settings.learning_rate)

    def end_epoch(self, epoch: "TrainedEpoch") -> None:
        """Let the epoch count for a soft permutation, and for the run; see `Run.end_epoch`."""
        advance_relaxation(self.run.model, self.run.settings, num_steps=self.run.num_batches)
        self.run.end_epoch(*epoch)

    @property
    def is_mixing(self) -> bool:
        """Whether experts are mixed by a soft permutation, which makes it another model."""
        soft = self.run.model.soft
        return soft is not None and not bool(soft.frozen)


class TrainedEpoch(NamedTuple):
    """What an epoch of training came to."""

    train_loss: float  # mean over its batches, as `penalty`
    penalty: float
    seconds: float  # its part of the wall time


def train_together(runs: Sequence[StackedRun], orders: Sequence[Tensor]) -> list[TrainedEpoch]:
    """Train an epoch of each run of a variant, on its rows in its order.

    The numbers are those of each run alone, up to the order of sums.
    """
    begin = time.perf_counter()
    means: dict[int, tuple[float, float]] = {}
    for is_mixing in (False, True):
        some = [index for index, run in enumerate(runs) if run.is_mixing is is_mixing]
        if some:
            stack = Stack([runs[index] for index in some])
            means |= zip(some, stack.train([orders[index] for index in some]), strict=True)
    seconds = (time.perf_counter() - begin) / max(1, len(runs))
    return [TrainedEpoch(*means[index], seconds) for index in range(len(runs))]


class Stack:
    """Runs of one variant for the length of an epoch, as one model."""

    def __init__(self, runs: Sequence[StackedRun]) -> None:
        self.runs = [each.run for each in runs]
        self.stacked = runs
        models = [run.model.train() for run in self.runs]
        self.values = torch.stack([each.values for each in runs])
        # What all share, called with the state of each; its own tensors need no copies.
        tensors = (*models[0].parameters(), *models[0].buffers())
        self.model = copy.deepcopy(models[0], {id(tensor): tensor for tensor in tensors})
        names = [name for name, _ in self.model.named_parameters()]
        parts = [part.requires_grad_() for part in _parts(self.values[:, VALUE], self.model)]
        self.parameters = dict(zip(names, parts, strict=True))
        self.buffers = _stacked_buffers(models) | self._settings_as_buffers()
        self.optimizer = StackedAdam(
            self.values,
            num_steps=[each.num_steps for each in runs],
            learning_rates=[run.settings.learning_rate for run in self.runs],
            like=self.runs[0].optimizer,
        )
        # Of dropout, which is all that draws.
        drawing = self.runs if self.model.dropout.p else []
        self.generators = [
            torch.Generator(self.values.device).manual_seed(run.seed) for run in drawing
        ]

    def train(self, orders: Sequence[Tensor]) -> list[tuple[float, float]]:
        """Train on the rows of each run in their order, and give each run what it has become.

        Returns the means over its batches of the loss and of the penalty of each.
        """
        train, settings = self.runs[0].dataset.train, self.runs[0].settings
        batches = torch.split(torch.stack(list(orders)), settings.batch_size, 1)
        # Summed on the device, which nothing waits for.
        totals = self.values.new_zeros(2, len(self.runs), dtype=torch.float64)
        for number, rows_ST in enumerate(batches):
            totals += self.step(train.take(rows_ST), number).double() * rows_ST.shape[1]
        for stacked, values in zip(self.stacked, self.values.unbind(), strict=True):
            stacked.values.copy_(values)
            stacked.num_steps += len(batches)
        losses, penalties = (totals / orders[0].shape[0]).tolist()
        return list(zip(losses, penalties, strict=True))

    def step(self, batch: Split, number: int) -> Tensor:
        """Take a step of each run, the epoch's `number`-th, on rows (S, T, ...) of its own.

        Returns the losses without the penalties, and the penalties, (2, S).
        """
        given = (
            (self.parameters, self.buffers),
            (dict(batch.inputs), batch.targets),
            batch.present,
            (self._dropout(batch.targets[0].shape[1]), self._soft_matrices(number)),
        )
        # What is None has no axis to go along.
        along = (0, 0, *(tuple(None if each is None else 0 for each in some) for some in given[2:]))
        losses_2S = torch.stack(vmap(self._losses_of_one, in_dims=along)(*given))
        # One run's loss knows nothing of another's parameters: their sum's gradient is each's.
        # Log weights of a permutation that is frozen get 0: nothing reads them any more.
        grads = torch.autograd.grad(
            losses_2S.sum(), [*self.parameters.values()], materialize_grads=True
        )
        self.optimizer.step(torch.cat([grad.flatten(1) for grad in grads], 1))
        return losses_2S.detach()

    def _losses_of_one(
        self,
        state: tuple[dict[str, Tensor], dict[str, Tensor]],
        rows: tuple[dict[str, Tensor], tuple[Tensor, ...]],
        present: tuple[Tensor | None, ...],
        drawn: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        first, batch = self.runs[0], Split(*rows, present)
        prediction: Prediction = functional_call(self.model, state, (batch.inputs, *drawn))
        losses = task_losses(first.dataset.tasks, prediction.outputs, batch)
        return total_loss(losses, first.settings.task_weights), prediction.penalty

    def _dropout(self, num_rows: int) -> Tensor | None:
        """Draw for each run what it would draw alone."""
        mixture, dropout = self.model.mixture, self.model.dropout
        shape = (len(mixture.routers), num_rows, mixture.experts.out_features)
        drawn = [dropout.factors(shape, self.values, generator) for generator in self.generators]
        factors = [each for each in drawn if each is not None]
        return torch.stack(factors) if factors else None

    def _soft_matrices(self, step: int) -> Tensor | None:
        """Soft permutations at a step of this epoch: one by one, each has its own iterations."""
        if not self.stacked[0].is_mixing:
            return None
        matrices = []
        for run, log_weights in zip(self.runs, self.parameters["soft.log_weights"], strict=True):
            assert run.model.soft is not None
            done_steps = int(run.model.soft.done_steps)
            matrices.append(run.model.soft.matrix_at(log_weights, done_steps + step))
        return torch.stack(matrices)

    def _settings_as_buffers(self) -> dict[str, Tensor]:
        """Let the shared model read gamma and the entropy weight of each run: as tensors."""
        buffers = {}
        device, dtype = self.values.device, self.values.dtype
        weights_S, gammas_S = (
            torch.tensor([getattr(run.settings, name) for run in self.runs], dtype=dtype).to(device)
            for name in (ENTROPY_WEIGHT, "gamma")
        )
        for name, router in self.model.named_modules():
            if isinstance(router, CometRouter | DSelectKRouter):
                # Scores over gamma, for a step of width 1.
                router.gamma = 1.0
                buffers[f"{name}.scale"] = gammas_S
                router.entropy_weight = 0.0
                router.penalties = (partial(_entropy, self.model),)
        if buffers:
            self.model.register_buffer(ENTROPY_WEIGHT, weights_S[0])
            buffers[ENTROPY_WEIGHT] = weights_S
        return buffers


def _parts(flat: Tensor, model: MixtureModel) -> Iterator[Tensor]:
    """Parts of (..., N) with the shapes of a model's parameters, which share its memory."""
    start = 0
    for parameter in model.parameters():
        part = flat[..., start : start + parameter.numel()]
        yield part.detach().view(*part.shape[:-1], *parameter.shape)
        start += parameter.numel()


def _stacked_buffers(models: Sequence[MixtureModel]) -> dict[str, Tensor]:
    """Buffers of all models, but for what a soft permutation counts, which is no tensor's work."""
    states = [dict(model.named_buffers()) for model in models]
    return {
        name: torch.stack([state[name] for state in states])
        for name in states[0]
        if not name.startswith("soft.")
    }


def _entropy(model: MixtureModel, decision: Decision) -> Tensor:
    """Return a router's entropy penalty, with the weight that the model has as a buffer."""
    weight = model.get_buffer(ENTROPY_WEIGHT)
    penalty: Tensor = weight * moe_gates.entropy_penalty(decision.probabilities, xp=xp)
    return penalty
