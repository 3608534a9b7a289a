"""The permutations, or replacements, near a permutation."""

from collections.abc import Iterator

import numpy as np

from moe_localsearch._changes import BoolArray
from moe_localsearch._checks import IntArray

PER_PART = 1024
"""Permutations that are made at once: 8 KiB for each position."""


def swaps(permutation: IntArray) -> Iterator[IntArray]:
    """Yield every swap of two positions, in parts, in the order of ``np.triu_indices(n, 1)``."""
    pairs = np.stack(np.triu_indices(len(permutation), 1), axis=1)
    for begin in range(0, len(pairs), PER_PART):
        yield exchanged(permutation, pairs[begin : begin + PER_PART])


def replacements(permutation: IntArray) -> Iterator[IntArray]:
    """Yield each position alone with each of its n - 1 other choices, in parts: no permutations.

    In the order of the entries that `other_entries` marks.
    """
    entries = np.argwhere(other_entries(permutation))
    for begin in range(0, len(entries), PER_PART):
        position, used = entries[begin : begin + PER_PART].T
        moved = np.tile(permutation, (len(position), 1))
        moved[np.arange(len(moved)), position] = used
        yield moved


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
