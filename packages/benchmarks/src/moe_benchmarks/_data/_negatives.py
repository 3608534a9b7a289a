"""Items that a user has not rated, sampled."""

import numpy as np
from numpy.typing import NDArray

# Cells of (user, item) that are ranked at once; a block takes about 12 bytes a cell.
BLOCK_CELLS = 1 << 23


def sample_negatives(
    user: NDArray[np.int64], item: NDArray[np.int64], /, *, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As many unrated items for each user as that user rated, or all that are left.

    Parameters
    ----------
    user, item : array, shape (num_ratings,), int64
        Rated pairs, each once; ids in [0, number of users) and [0, number of items).
    generator : numpy.random.Generator
        Each set of unrated items of a user is equally likely.

    Returns
    -------
    user, item : array, shape (num_negatives,), int64
        Pairs that were not rated, each once, sorted by user.
    """
    num_items = int(item.max()) + 1
    num_rated = np.bincount(user)
    wanted = np.minimum(num_rated, num_items - num_rated)
    order = np.argsort(user, kind="stable")
    user, item = user[order], item[order]
    block = max(1, BLOCK_CELLS // num_items)
    users, items = [], []
    for first in range(0, len(num_rated), block):
        here = slice(*np.searchsorted(user, (first, first + block)))
        counts = wanted[first : first + block]
        keys = generator.random((len(counts), num_items), dtype=np.float32)
        keys[user[here] - first, item[here]] = 2  # behind every unrated item: keys are below 1
        ranked = np.argsort(keys, axis=1)
        row, rank = np.nonzero(np.arange(num_items) < counts[:, None])
        users.append(row + first)
        items.append(ranked[row, rank])
    return np.concatenate(users), np.concatenate(items)
