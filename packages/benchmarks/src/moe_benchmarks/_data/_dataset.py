"""What every data set is, whatever it was read from: named inputs, and targets a task.

Axes: T rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

# Names of inputs.
USER, ITEM = "user", "item"  # (T,) int64
PIXELS = "pixels"  # (T, height, width) float32, dimensionless, 0..1
PICTURE_ID = "picture_id"  # (T,) int64, equal for equal pictures

SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """A data file is missing, damaged, or not what it should be."""


@dataclass(frozen=True)
class Task:
    """One thing to predict."""

    name: str
    kind: Literal["binary", "regression", "classes"]
    num_outputs: int = 1  # of its head: 1, or the number of classes


@dataclass(frozen=True)
class Split:
    """Rows of one split, in the order of the data set's tasks."""

    inputs: Mapping[str, Tensor]  # by name, each of T rows
    # (T,) each: float32 of 0 or 1 (binary), float32 (regression), int64 (classes)
    targets: tuple[Tensor, ...]
    # (T,) bool, whether a row counts in a task; None where all rows do
    present: tuple[Tensor | None, ...]

    def __len__(self) -> int:
        return len(self.targets[0])

    def take(self, rows: Tensor | slice) -> "Split":
        """Return some rows: those of a slice, an index or a mask."""
        return Split(
            inputs={name: values[rows] for name, values in self.inputs.items()},
            targets=tuple(target[rows] for target in self.targets),
            present=tuple(None if mask is None else mask[rows] for mask in self.present),
        )

    def to(self, device: torch.device) -> "Split":
        """Return the same rows on a device."""
        return Split(
            inputs={name: values.to(device) for name, values in self.inputs.items()},
            targets=tuple(target.to(device) for target in self.targets),
            present=tuple(None if mask is None else mask.to(device) for mask in self.present),
        )


@dataclass(frozen=True)
class Dataset:
    """Three splits of one data set."""

    name: str
    tasks: tuple[Task, ...]
    train: Split
    validation: Split
    test: Split
    num_ids: Mapping[str, int]  # by input that holds ids: they are in [0, num_ids)
    hash_input: str  # the ids that hash routing reads
    notes: tuple[str, ...] = ()  # sentences that a report must say of the data

    @property
    def device(self) -> torch.device:
        """Where its rows are, and where models are trained on them."""
        return self.train.targets[0].device

    def to(self, device: torch.device) -> "Dataset":
        """Return the same data on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in SPLITS})


def check_targets(dataset: Dataset, /, what: str) -> None:
    """Raise unless each task counts in a row of each split: without one its loss would be 0."""
    for name in SPLITS:
        split = getattr(dataset, name)
        for task, target, present in zip(dataset.tasks, split.targets, split.present, strict=True):
            if not (len(target) if present is None else present.any()):
                msg = f"{what} must have a value of {task.name!r} in the {name} rows, got none."
                raise DataError(msg)
