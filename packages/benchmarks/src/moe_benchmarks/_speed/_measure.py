"""Rows per second of training: as it is done here, and as published, in turns.

Axes: T rows, G gates (one a task), E experts.
"""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import moe_gates
from moe_benchmarks._data._dataset import Dataset, Split
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._loop import train_step
from moe_benchmarks._experiments._losses import task_losses, total_loss
from moe_benchmarks._experiments._model import MixtureModel, build_model
from moe_benchmarks._experiments._run import new_optimizer
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._resumable import row_order
from moe_benchmarks._speed._published import PublishedModel, StepMetrics
from moe_benchmarks.timing import interleaved_medians
from moe_runtime import CometRouter, DSelectKRouter

# Decision scores of a trained gate in units of gamma: nearly no row is inside the band.
HARD_SCALE = 1e6
# Of float32 products whose sums have another order.
TOLERANCE = 1e-3
# A product that shows what the device can do: rows and both numbers of features.
GEMM_SIZE = 1024
LEARNING_RATE, GAMMA, ENTROPY_WEIGHT = 1e-4, 1.0, 0.1


class DifferentAnswersError(RuntimeError):
    """Two formulations of one model disagree, so that their times say nothing."""


@dataclass(frozen=True)
class Speed:
    """What training of one gate costs, in one state; medians of steps that took turns."""

    gate: str
    hardened: bool  # whether decisions are as steep as those of a trained gate
    batch_size: int
    experts_per_row: float  # mean over rows and tasks
    union_per_row: float  # mean over rows: what has to be computed
    milliseconds: float  # a step
    published_milliseconds: float
    rows_per_second: float
    published_rows_per_second: float
    ratio: float  # how many times faster than as published
    epoch_seconds: float  # all training rows
    floor_milliseconds: float  # arithmetic of what is selected, at the rate of a large product
    difference: float  # largest relative one of the losses before the first step

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def measure_speed(
    experiment: Experiment, dataset: Dataset, gate: str, *, seconds: float
) -> list[Speed]:
    """Time training steps at an experiment's sizes; gates that harden, in both states.

    Parameters
    ----------
    experiment, dataset
        The sizes, and the rows that are trained on.
    gate
        One of `GATES`, without a search.
    seconds
        Time for each state, at least; 7 rounds are made in any case.

    Raises
    ------
    DifferentAnswersError
        If both formulations do not give the same losses.
    """
    states = (False, True) if GATES[gate].has_smooth_step else (False,)
    return [
        _measure(experiment, dataset, gate, hardened=hardened, seconds=seconds)
        for hardened in states
    ]


def _measure(
    experiment: Experiment, dataset: Dataset, gate: str, *, hardened: bool, seconds: float
) -> Speed:
    settings = TrialSettings.for_experiment(
        experiment,
        gate=gate,
        search="identity",
        seed=0,
        learning_rate=LEARNING_RATE,
        gamma=GAMMA,
        entropy_weight=ENTROPY_WEIGHT,
        search_epochs=1,
    )
    model = build_model(experiment, settings, dataset, steps_per_epoch=1).to(dataset.device)
    if hardened:
        harden(model)
    published = PublishedModel(model)
    order = row_order(settings.seed, 0, len(dataset.train)).to(dataset.device)
    batches = torch.split(order, settings.batch_size)
    first = dataset.train.take(batches[0])
    difference = _difference(model, published, dataset, settings, first)
    active_TG, union_T = _active(model, first)
    flops = _floor_flops(model, published, first, float(union_T.double().mean()))
    square = torch.randn(GEMM_SIZE, GEMM_SIZE, device=dataset.device)
    medians = interleaved_medians(
        {
            "here": _Steps(model, dataset, settings, batches),
            "published": _Steps(published, dataset, settings, batches, StepMetrics(dataset.tasks)),
            "product": partial(torch.mm, square, square),
        },
        seconds=seconds,
        wait=torch.get_device_module(dataset.device).synchronize,
    )
    here, theirs = medians["here"], medians["published"]
    return Speed(
        gate=gate,
        hardened=hardened,
        batch_size=len(first),
        experts_per_row=float(active_TG.double().mean()),
        union_per_row=float(union_T.double().mean()),
        milliseconds=here,
        published_milliseconds=theirs,
        rows_per_second=1e3 * len(first) / here,
        published_rows_per_second=1e3 * len(first) / theirs,
        ratio=theirs / here,
        epoch_seconds=1e-3 * here * len(batches),
        floor_milliseconds=flops * medians["product"] / (2 * GEMM_SIZE**3),
        difference=difference,
    )


@torch.no_grad()
def harden(model: MixtureModel) -> None:
    """Make decisions of smooth steps as steep as after training; which expert is best stays."""
    for router in model.mixture.routers:
        if isinstance(router, CometRouter):
            decisions: nn.Module = router.split
        else:
            assert isinstance(router, DSelectKRouter)
            decisions = router.bit
        for parameter in decisions.parameters():
            parameter.mul_(HARD_SCALE)


class _Steps:
    """Training steps, one a call, through the batches of an epoch again and again."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        settings: TrialSettings,
        batches: tuple[Tensor, ...],
        metrics: StepMetrics | None = None,
    ) -> None:
        self.model, self.dataset, self.settings = model.train(), dataset, settings
        # As published, Adam is not fused.
        self.optimizer = (
            new_optimizer(model, settings.learning_rate)
            if metrics is None
            else torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
        )
        # The last batch may be smaller.
        self.batches = cycle(batches[:-1] or batches)
        self.metrics = metrics

    def __call__(self) -> None:
        batch = self.dataset.train.take(next(self.batches))
        weights = self.settings.task_weights
        *_, prediction = train_step(self.model, self.optimizer, self.dataset.tasks, weights, batch)
        if self.metrics is not None:
            self.metrics.update(prediction, batch)


@torch.no_grad()
def _difference(
    model: MixtureModel,
    published: PublishedModel,
    dataset: Dataset,
    settings: TrialSettings,
    batch: Split,
) -> float:
    """Largest relative difference of loss and penalty, without dropout."""
    pairs = []
    for each in (model.eval(), published.eval()):
        prediction = each(batch.inputs)
        loss = total_loss(
            task_losses(dataset.tasks, prediction.outputs, batch), settings.task_weights
        )
        pairs.append(torch.stack([loss, loss + prediction.penalty]))
    difference = float(((pairs[0] - pairs[1]) / pairs[1]).abs().max())
    if not difference < TOLERANCE:
        msg = (
            f"the losses of {settings.gate} here and as published differ by {difference:.2g} of "
            f"them, more than {TOLERANCE}, so that their times are no comparison."
        )
        raise DifferentAnswersError(msg)
    return difference


@torch.no_grad()
def _active(model: MixtureModel, batch: Split) -> tuple[Tensor, Tensor]:
    """Experts of each row in each gate, (T, G), and in any of them, (T,)."""
    weights_TGE = model.eval()(batch.inputs).weights_GTE.transpose(0, 1)
    return (weights_TGE != 0).sum(-1), moe_gates.count_union(weights_TGE)


def _floor_flops(
    model: MixtureModel, published: PublishedModel, batch: Split, union_per_row: float
) -> float:
    """Floating-point operations of a step's products, with the selected experts only."""
    whole, experts = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with whole:
        prediction = published.train()(batch.inputs)
        torch.autograd.backward(prediction.penalty + torch.cat(prediction.outputs, 1).sum())
    x_TD = model.bottom(batch.inputs)
    with experts:
        torch.autograd.backward(torch.stack([expert(x_TD) for expert in published.experts]).sum())
    published.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    share = union_per_row / len(published.experts)
    return whole.get_total_flops() - (1 - share) * experts.get_total_flops()
