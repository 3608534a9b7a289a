"""Two handwritten digits in one picture: a two-task problem from scikit-learn's digits.

Built as the paper builds MultiMNIST: two pictures are overlaid on a larger canvas, one
shifted to the top left and one to the bottom right; each task is to read one of them.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from moe_benchmarks._data._overlay import OVERLAY_TASKS, overlay

TASKS = OVERLAY_TASKS
NUM_CLASSES = 10
DIGIT_SIZE = 8
# The paper moves 28-pixel digits by 4 pixels each way; 1 pixel is the same share of 8.
SHIFT = 1
CANVAS_SIZE = DIGIT_SIZE + 2 * SHIFT
NUM_PIXELS = CANVAS_SIZE**2
LARGEST_VALUE = 16  # scikit-learn's digits hold 0..16
# Ids for hash routing: a picture's checksum, cut to this many.
NUM_IDS = 4096
# Shares of the base pictures; they are split before composing, so that no digit is in two.
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.2


@dataclass(frozen=True)
class Split:
    """Rows of one split."""

    pixels: Tensor  # (T, 100) float32, dimensionless, 0..1, row by row from the top left
    ids: Tensor  # (T,) int64, equal for equal pictures
    labels: Tensor  # (T, 2) int64, the digit of each task

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TwoDigits:
    """The three splits."""

    train: Split
    validation: Split
    test: Split


def load_two_digits(*, num_train: int, num_validation: int, num_test: int, seed: int) -> TwoDigits:
    """Compose the three splits from disjoint base pictures."""
    images, labels = read_digits()
    generator = np.random.default_rng(seed)
    counts = (num_train, num_validation, num_test)
    splits = [
        _compose(images[base], labels[base], count, generator)
        for base, count in zip(split_base(len(labels), generator), counts, strict=True)
    ]
    return TwoDigits(*splits)


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's digits, (1797, 8, 8) of 0..16, and what they show, (1797,)."""
    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, DIGIT_SIZE, DIGIT_SIZE).astype(np.uint8), labels.astype(np.int64)


def split_base(count: int, generator: np.random.Generator) -> list[NDArray[np.int64]]:
    """Split the base pictures into training, validation and test ones."""
    first = round(TRAIN_SHARE * count)
    second = round((TRAIN_SHARE + VALIDATION_SHARE) * count)
    return np.split(generator.permutation(count), [first, second])


def _compose(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    count: int,
    generator: np.random.Generator,
) -> Split:
    pair = generator.integers(len(labels), size=(2, count))
    canvas = overlay(images[pair[0]], images[pair[1]], shift=SHIFT)
    ids = [zlib.crc32(picture.tobytes()) % NUM_IDS for picture in canvas]
    return Split(
        pixels=torch.from_numpy(canvas.reshape(count, -1).astype(np.float32) / LARGEST_VALUE),
        ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.from_numpy(labels[pair].T.copy()),
    )
