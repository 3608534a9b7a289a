"""Ids of pictures, for hash routing."""

import numpy as np
from numpy.typing import NDArray

NUM_PICTURE_IDS = 4096
ID_BITS = 12
WORD_BYTES = 8
# Odd 64-bit constants with many bits set: the golden ratio's and one of xxHash's.
BASE, FINAL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
# Rows that are hashed at once, so that the products of a block stay in the cache.
BLOCK_ROWS = 1024


def picture_ids(pictures: NDArray[np.uint8], /) -> NDArray[np.int64]:
    """Hash pictures into [0, `NUM_PICTURE_IDS`); equal pictures have equal ids.

    Parameters
    ----------
    pictures : array, shape (num_pictures, height, width), uint8

    Returns
    -------
    array, shape (num_pictures,), int64
        The top bits of a polynomial of the picture's 64-bit words; the same on every machine.
    """
    flat = pictures.reshape(len(pictures), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % WORD_BYTES)))
    words = np.ascontiguousarray(flat).view("<u8").astype(np.uint64, copy=False)
    powers = np.cumprod(np.full(words.shape[1], BASE), dtype=np.uint64)
    sums = np.empty(len(words), np.uint64)
    for first in range(0, len(words), BLOCK_ROWS):
        block = slice(first, first + BLOCK_ROWS)
        sums[block] = (words[block] * powers).sum(axis=1, dtype=np.uint64)
    # A difference in the high bits alone would stay there: fold it down before the last product.
    mixed = (sums ^ (sums >> np.uint64(32))) * FINAL
    return (mixed >> np.uint64(64 - ID_BITS)).astype(np.int64)
