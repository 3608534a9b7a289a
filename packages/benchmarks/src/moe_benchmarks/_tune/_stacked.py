"""Run a variant's waiting trials, several at a time, as one model."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from optuna.storages import BaseStorage
from torch import Tensor

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._row import Row, complete_row, failed_row
from moe_benchmarks._experiments._run import Run
from moe_benchmarks._experiments._stack import StackedRun, TrainedEpoch, train_together
from moe_benchmarks._tune._plan import StudyPlan
from moe_benchmarks._tune._trial import TakenTrial, count_trials, take_trial


@dataclass
class _Member:
    """A trial in the stack."""

    taken: TakenTrial
    stacked: StackedRun
    order: Tensor | None = None  # of the rows of the epoch that comes
    epoch: TrainedEpoch | None = None  # that was trained last
    stack: int = 0  # most that were trained together, itself included
    seconds: float = 0.0  # its own, and its part of what was trained together


class TrialStack:
    """Trials of one variant that are trained together; one that is over makes room for the next."""

    def __init__(
        self,
        storage: BaseStorage,
        plan: StudyPlan,
        gate: str,
        search: str,
        dataset: Dataset,
        *,
        size: int,
    ) -> None:
        self._waiting = (storage, plan, gate, search)
        self._experiment, self._share = EXPERIMENTS[plan.experiment], plan.share
        self._dataset, self._size = dataset, size
        self._members: list[_Member] = []

    def work(self) -> None:
        """Run waiting trials until there are none.

        A trial that fails by itself is recorded. What fails for all of them, such as memory that
        does not suffice, is raised: the next command tries these trials again.
        """
        self._fill()
        while self._members:
            self._each(self._begin_epoch)
            self._train_epoch()
            self._each(self._end_epoch)
            self._fill()

    def _fill(self) -> None:
        """Take trials that wait, as long as there is room."""
        while len(self._members) < self._size and count_trials(*self._waiting)[0]:
            taken = take_trial(*self._waiting)
            if taken is None:
                return
            try:
                run = Run(self._experiment, taken.settings, self._dataset)
                self._members.append(_Member(taken, StackedRun(run)))
            except Exception as error:  # noqa: BLE001 - as below
                taken.finish(self._failed_row(taken, error))

    def _begin_epoch(self, member: _Member) -> None:
        member.order = member.stacked.run.begin_epoch()

    def _train_epoch(self) -> None:
        members = self._members
        orders = [member.order for member in members if member.order is not None]
        epochs = train_together([member.stacked for member in members], orders)
        for member, epoch in zip(members, epochs, strict=True):
            member.epoch, member.stack = epoch, max(member.stack, len(members))
            member.seconds += epoch.seconds

    def _end_epoch(self, member: _Member) -> None:
        assert member.epoch is not None
        member.stacked.end_epoch(member.epoch)

    def _each(self, do: Callable[[_Member], None]) -> None:
        """Do what concerns each trial alone; one that is over or fails leaves, with its row."""
        for member in list(self._members):
            row = self._row_after(member, do)
            if row is not None:
                self._members.remove(member)
                member.taken.finish(row)

    def _row_after(self, member: _Member, do: Callable[[_Member], None]) -> Row | None:
        """Do it, and return the row of a trial that ends with it."""
        begin = time.perf_counter()
        try:
            do(member)
            member.seconds += time.perf_counter() - begin
            return self._row(member) if member.stacked.run.is_over else None
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            return self._failed_row(member.taken, error)

    def _failed_row(self, taken: TakenTrial, error: Exception) -> Row:
        if isinstance(error, torch.OutOfMemoryError):
            raise error  # of the stack, not of this trial
        return failed_row(
            self._experiment,
            taken.settings,
            self._dataset.device,
            error,
            share=self._share,
            trial=taken.number,
        )

    def _row(self, member: _Member) -> Row:
        return complete_row(
            self._experiment,
            member.taken.settings,
            self._dataset,
            member.stacked.run.trained(),
            share=self._share,
            trial=member.taken.number,
            seconds=member.seconds,
            stack=member.stack,
        )
