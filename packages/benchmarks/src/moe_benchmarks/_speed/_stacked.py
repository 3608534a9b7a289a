"""What a training step of several trials together costs, beside one of a trial alone."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import Experiment
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._experiments._loop import train_step
from moe_benchmarks._experiments._run import Run
from moe_benchmarks._experiments._settings import TrialSettings
from moe_benchmarks._experiments._stack import Stack, StackedRun
from moe_benchmarks._resumable import row_order
from moe_benchmarks._speed._measure import ENTROPY_WEIGHT, GAMMA, LEARNING_RATE
from moe_benchmarks.timing import interleaved_medians


@dataclass(frozen=True)
class StackSpeed:
    """Steps of one gate's trials, alone and together; medians of steps that took turns."""

    gate: str
    stack: int  # trials that are trained together
    batch_size: int
    milliseconds: float  # a step of one trial
    stacked_milliseconds: float  # a step of all of them
    ratio: float  # how many times faster than one after the other
    operations: int  # of PyTorch's, in a step of one trial: on a GPU about its launches
    stacked_operations: int  # in a step of all of them

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def measure_stack(
    experiment: Experiment, dataset: Dataset, gate: str, stack: int, *, seconds: float
) -> StackSpeed:
    """Time training steps of trials that differ in their seed.

    Parameters
    ----------
    experiment, dataset
        The sizes, and the rows that are trained on.
    gate
        One of `GATES` that draws nothing in training, without a search, as it begins.
    stack
        Trials that are trained together.
    seconds
        Time for it, at least; 7 rounds are made in any case.

    Raises
    ------
    ValueError
        If the gate draws, so that its trials are not trained together.
    """
    if GATES[gate].draws:
        msg = f"{gate} draws in training: its trials are not trained together."
        raise ValueError(msg)
    settings = [
        TrialSettings.for_experiment(
            experiment,
            gate=gate,
            search="identity",
            seed=seed,
            learning_rate=LEARNING_RATE,
            gamma=GAMMA,
            entropy_weight=ENTROPY_WEIGHT,
            search_epochs=1,
        )
        for seed in range(stack)
    ]
    runs = [Run(experiment, each, dataset) for each in settings]
    size = min(experiment.batch_size, len(dataset.train))
    order = row_order(0, 0, len(dataset.train)).to(dataset.device)
    # The last batch may be smaller.
    batches = [rows for rows in torch.split(order, size) if len(rows) == size]
    alone = _alone(Run(experiment, settings[0], dataset), batches)
    together = _together([StackedRun(run) for run in runs], batches)
    operations, stacked_operations = _count_operations(alone), _count_operations(together)
    medians = interleaved_medians(
        {"alone": alone, "together": together},
        seconds=seconds,
        wait=torch.get_device_module(dataset.device).synchronize,
    )
    return StackSpeed(
        gate=gate,
        stack=stack,
        batch_size=size,
        milliseconds=medians["alone"],
        stacked_milliseconds=medians["together"],
        ratio=stack * medians["alone"] / medians["together"],
        operations=operations,
        stacked_operations=stacked_operations,
    )


def _alone(run: Run, batches: list[Tensor]) -> Callable[[], object]:
    model, dataset, endless = run.model.train(), run.dataset, cycle(batches)

    def step() -> None:
        batch = dataset.train.take(next(endless))
        train_step(model, run.optimizer, dataset.tasks, run.settings.task_weights, batch)

    return step


def _together(runs: list[StackedRun], batches: list[Tensor]) -> Callable[[], object]:
    stack, train, endless = Stack(runs), runs[0].run.dataset.train, cycle(batches)
    return lambda: stack.step(train.take(next(endless).expand(len(runs), -1)), 0)


def _count_operations(step: Callable[[], object]) -> int:
    """Count what a step asks of a device, forward, backward and the optimiser's."""
    step()  # the first allocates the moments
    counter = _Counter()
    with counter:
        step()
    return counter.count


class _Counter(TorchDispatchMode):
    """Counts operations that compute something: views launch nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - PyTorch's own
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Count, and go on."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
