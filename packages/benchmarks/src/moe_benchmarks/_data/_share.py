"""A stated share of a data set, for runs that must be short."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_benchmarks._data._dataset import ITEM, USER, Dataset, Split, check_targets


def with_users(dataset: Dataset, share: float, *, seed: int = 0) -> Dataset:
    """Keep a share of the users, with all their rows in all three splits.

    Parameters
    ----------
    dataset : Dataset
        One with the input `USER`.
    share : float
        In (0, 1], dimensionless; at least one user is kept. 1 returns the data set itself.
    seed : int
        Which users; users and items that are left get the ids 0..n-1, in order.

    Raises
    ------
    DataError
        If a task has no value left in a split.
    ValueError
        If `share` is outside (0, 1].
    """
    check_share(share)
    if share == 1:
        return dataset
    users = torch.unique(torch.cat([split.inputs[USER] for split in _splits(dataset)]))
    count = max(1, round(share * len(users)))
    chosen = np.random.default_rng(seed).choice(len(users), count, replace=False)
    kept = users[torch.from_numpy(np.sort(chosen))]
    note = f"Only {count} of {len(users)} users are used ({share:.3g} of them, seed {seed})."
    part = _with_rows(dataset, lambda split: torch.isin(split.inputs[USER], kept), note)
    check_targets(part, f"a share of {share:.3g} of the users")
    return _compact(part)


def with_rows(dataset: Dataset, share: float, *, seed: int = 0) -> Dataset:
    """Keep a share of the rows of each split, at least one; 1 returns the data set itself.

    Parameters
    ----------
    dataset : Dataset
        Any; its ids stay as they are.
    share : float
        In (0, 1], dimensionless.
    seed : int
        Which rows.

    Raises
    ------
    ValueError
        If `share` is outside (0, 1].
    """
    check_share(share)
    if share == 1:
        return dataset
    generator = np.random.default_rng(seed)

    def some(split: Split) -> Tensor:
        return torch.from_numpy(some_rows(len(split), share, generator))

    return _with_rows(dataset, some, rows_note(share, seed))


def some_rows(num_rows: int, share: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw a share of row numbers, at least one, in order."""
    return np.sort(generator.choice(num_rows, scaled(num_rows, share), replace=False))


def rows_note(share: float, seed: int) -> str:
    """Say that only some rows are used."""
    return f"Only {share:.3g} of the rows are used (seed {seed})."


def check_share(share: float) -> None:
    """Raise unless a share is in (0, 1]."""
    if not 0 < share <= 1:
        msg = f"`share` must be in (0, 1], got {share}."
        raise ValueError(msg)


def scaled(count: int, share: float) -> int:
    """Return a share of a count of rows, rounded, at least 1."""
    return max(1, round(share * count))


def _splits(dataset: Dataset) -> tuple[Split, Split, Split]:
    return dataset.train, dataset.validation, dataset.test


def _with_rows(dataset: Dataset, rows: Callable[[Split], Tensor], note: str) -> Dataset:
    train, validation, test = (split.take(rows(split)) for split in _splits(dataset))
    return replace(
        dataset, train=train, validation=validation, test=test, notes=(*dataset.notes, note)
    )


def _compact(dataset: Dataset) -> Dataset:
    """Renumber the users and items that occur."""
    splits, num_ids = list(_splits(dataset)), dict(dataset.num_ids)
    for name in (USER, ITEM):
        left = torch.unique(torch.cat([split.inputs[name] for split in splits]))
        num_ids[name] = len(left)
        splits = [
            replace(
                split,
                inputs={**split.inputs, name: torch.searchsorted(left, split.inputs[name])},
            )
            for split in splits
        ]
    train, validation, test = splits
    return replace(dataset, train=train, validation=validation, test=test, num_ids=num_ids)
