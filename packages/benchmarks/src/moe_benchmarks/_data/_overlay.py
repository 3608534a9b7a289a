"""Two pictures in one: the paper's MultiMNIST, for any pictures.

One picture is shifted to the top left of a larger canvas and one to the bottom right, and the
brighter of both counts at each pixel; each task is to read one of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import PICTURE_ID, PIXELS, Dataset, Split, Task
from moe_benchmarks._data._picture_ids import NUM_PICTURE_IDS, picture_ids

OVERLAY_TASKS = ("top left", "bottom right")


class Labelled(NamedTuple):
    """Base pictures of one split."""

    pictures: NDArray[np.uint8]  # (count, height, width)
    labels: NDArray[np.int64]  # (count,)


class RowCounts(NamedTuple):
    """Composed pictures of each split."""

    train: int
    validation: int
    test: int


def overlay_dataset(
    name: str,
    base: Sequence[Labelled],
    counts: RowCounts,
    *,
    shift: int,
    largest: int,
    num_classes: int,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Dataset:
    """Compose the pictures of three splits, each from base pictures of its own.

    Parameters
    ----------
    name : str
        Name of the data set.
    base : sequence of Labelled
        Base pictures of training, validation and test.
    counts : RowCounts
        Pictures to compose.
    shift : int
        Pixels by which the canvas is larger than a picture, on two of its sides each.
    largest : int
        Value of a white pixel, which becomes 1.
    num_classes : int
        Classes of each task.
    seed : int
        Of the pairs, which are drawn with replacement.
    notes : sequence of str
        Sentences that a report must say of the data.
    """
    generator = np.random.default_rng(seed)
    train, validation, test = (
        _compose(part, count, shift, largest, generator)
        for part, count in zip(base, counts, strict=True)
    )
    return Dataset(
        name=name,
        tasks=tuple(Task(task, "classes", num_classes) for task in OVERLAY_TASKS),
        train=train,
        validation=validation,
        test=test,
        num_ids={PICTURE_ID: NUM_PICTURE_IDS},
        hash_input=PICTURE_ID,
        notes=tuple(notes),
    )


def overlay(
    top_left: NDArray[np.uint8], bottom_right: NDArray[np.uint8], /, *, shift: int
) -> NDArray[np.uint8]:
    """Overlay pictures, (count, height, width), on canvases that are `2 * shift` larger."""
    count, height, width = top_left.shape
    canvas = np.zeros((count, height + 2 * shift, width + 2 * shift), np.uint8)
    canvas[:, :height, :width] = top_left
    corner = canvas[:, -height:, -width:]
    np.maximum(corner, bottom_right, out=corner)
    return canvas


def _compose(
    base: Labelled, count: int, shift: int, largest: int, generator: np.random.Generator
) -> Split:
    pair = generator.integers(len(base.labels), size=(2, count))
    canvas = overlay(base.pictures[pair[0]], base.pictures[pair[1]], shift=shift)
    pixels = torch.from_numpy(canvas).float()
    return Split(
        inputs={
            PIXELS: pixels.div_(largest),
            PICTURE_ID: torch.from_numpy(picture_ids(canvas)),
        },
        targets=tuple(torch.from_numpy(base.labels[rows]) for rows in pair),
        present=(None, None),
    )
