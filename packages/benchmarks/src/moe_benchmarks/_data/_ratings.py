"""The paper's two tasks from a table of ratings: was it rated, and how high.

Every rated pair of user and item is a row, and so is a sampled unrated one for each of them;
only rated rows have a rating.

References
----------
Ibrahim et al., KDD 2023, arXiv:2306.02824, the supplement on recommender data sets.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import ITEM, USER, Dataset, Split, Task
from moe_benchmarks._data._negatives import sample_negatives
from moe_benchmarks._data._split_rows import split_rows

RATING = "rating"


def dataset_from_ratings(
    name: str,
    user: NDArray[np.integer[Any]],
    item: NDArray[np.integer[Any]],
    rating: NDArray[Any],
    *,
    seen: str,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Dataset:
    """Sample unrated items, and split the rows 78.75/11.25/10 %, stratified by the first task.

    Parameters
    ----------
    name : str
        Name of the data set.
    user, item : array, shape (num_ratings,), integer
        Ids as they are published, each pair once; the data set has them in 0..n-1, in order.
    rating : array, shape (num_ratings,), real
        In the publisher's unit.
    seen : str
        Name of the binary task: whether the pair was rated.
    seed : int
        Of the unrated items and of the split; the paper's is 0.
    notes : sequence of str
        Sentences that a report must say of the data.

    Raises
    ------
    ValueError
        If there is no rating, or a pair is rated twice.
    """
    _, user_index = np.unique(user, return_inverse=True)
    items, item_index = np.unique(item, return_inverse=True)
    _check_pairs(user_index * len(items) + item_index)
    generator = np.random.default_rng(seed)
    other_user, other_item = sample_negatives(user_index, item_index, generator=generator)
    is_seen = np.arange(len(rating) + len(other_user)) < len(rating)
    columns = (
        np.concatenate([user_index, other_user]),
        np.concatenate([item_index, other_item]),
        np.concatenate([rating, np.zeros(len(other_user))]),
        is_seen,
    )
    train, validation, test = (
        rating_split(*(column[rows] for column in columns))
        for rows in split_rows(is_seen, generator=generator)
    )
    return Dataset(
        name=name,
        tasks=rating_tasks(seen),
        train=train,
        validation=validation,
        test=test,
        num_ids={USER: int(user_index.max()) + 1, ITEM: len(items)},
        hash_input=ITEM,
        notes=tuple(notes),
    )


def rating_tasks(seen: str, /) -> tuple[Task, Task]:
    """Return the two tasks, the binary one first."""
    return Task(seen, "binary"), Task(RATING, "regression")


def rating_split(
    user: NDArray[Any], item: NDArray[Any], rating: NDArray[Any], is_seen: NDArray[np.bool_], /
) -> Split:
    """Return the rows of one split; a rating counts where the pair was rated."""
    return Split(
        inputs={
            USER: torch.from_numpy(user.astype(np.int64)),
            ITEM: torch.from_numpy(item.astype(np.int64)),
        },
        targets=(
            torch.from_numpy(is_seen.astype(np.float32)),
            torch.from_numpy(rating.astype(np.float32)),
        ),
        present=(None, torch.from_numpy(is_seen.astype(np.bool_))),
    )


def _check_pairs(codes: NDArray[np.int64]) -> None:
    if not len(codes):
        msg = "`rating` must hold at least one rating, got none."
        raise ValueError(msg)
    repeated = len(codes) - len(np.unique(codes))
    if repeated:
        msg = f"`user` and `item` must hold each pair once, got {repeated} repeated ones."
        raise ValueError(msg)
