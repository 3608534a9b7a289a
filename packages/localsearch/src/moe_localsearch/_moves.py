"""The permutations, or replacements, near a permutation."""

import numpy as np

from moe_localsearch._changes import BoolArray
from moe_localsearch._checks import IntArray


def swaps(permutation: IntArray) -> IntArray:
    """Return every swap of two positions, in the order of ``np.triu_indices(n, 1)``."""
    return exchanged(permutation, np.stack(np.triu_indices(len(permutation), 1), axis=1))


def replacements(permutation: IntArray) -> IntArray:
    """Return each position alone with each of its n - 1 other choices: no permutations.

    In the order of the entries that `other_entries` marks.
    """
    position, used = np.nonzero(other_entries(permutation))
    moved = np.tile(permutation, (len(position), 1))
    moved[np.arange(len(moved)), position] = used
    return moved


def other_entries(permutation: IntArray) -> BoolArray:
    """Mark the entries [i, j] of an (n, n) array with ``j != permutation[i]``."""
    others: BoolArray = np.arange(len(permutation)) != permutation[:, None]
    return others


def three_cycles(permutation: IntArray, triples: IntArray) -> IntArray:
    """Return both rotations of the three positions of each row of `triples`, shape (B, 3)."""
    left, right = triples[:, :2], triples[:, 1:]
    forward = exchanged(exchanged(permutation, left), right)
    backward = exchanged(exchanged(permutation, right), left)
    return np.concatenate([forward, backward])


def exchanged(permutations: IntArray, pairs: IntArray) -> IntArray:
    """Exchange the two positions of each row of `pairs`, shape (B, 2), in a copy each.

    `permutations` has shape (B, n), or (n,) where all begin with the same.
    """
    moved = np.array(np.broadcast_to(permutations, (len(pairs), permutations.shape[-1])))
    each, first, second = np.arange(len(pairs)), pairs[:, 0], pairs[:, 1]
    moved[each, first], moved[each, second] = moved[each, second], moved[each, first]
    return moved
