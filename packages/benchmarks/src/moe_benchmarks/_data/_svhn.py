"""MNIST and SVHN in one data set: read a digit, written or photographed."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat

from moe_benchmarks._data._dataset import PICTURE_ID, PIXELS, DataError, Dataset, Split, Task
from moe_benchmarks._data._multi_mnist import NUM_CLASSES, WHITE, divide_train, read_base
from moe_benchmarks._data._overlay import Labelled
from moe_benchmarks._data._picture_ids import NUM_PICTURE_IDS, picture_ids
from moe_benchmarks._data._source_files import damaged, find_file

MNIST_SVHN = "mnist-svhn"
SIZE = 32  # pixels, of SVHN's pictures; MNIST's are put in the middle of a black one
NOTE = "SVHN's colours are averaged to grey, and MNIST's pictures have a black border of 2 pixels."


def load_mnist_svhn(data_dir: Path, /, *, seed: int = 0) -> Dataset:
    """Read MNIST's idx files in `mnist`, and `train_32x32.mat` and `test_32x32.mat` in `svhn`."""
    written = read_base(data_dir, "mnist", dataset=MNIST_SVHN, seed=seed)
    photographed = _read_base(data_dir, seed)
    generator = np.random.default_rng(seed)
    train, validation, test = (
        _mix(_padded(one), other, generator)
        for one, other in zip(written, photographed, strict=True)
    )
    return Dataset(
        name=MNIST_SVHN,
        tasks=(Task("digit", "classes", NUM_CLASSES),),
        train=train,
        validation=validation,
        test=test,
        num_ids={PICTURE_ID: NUM_PICTURE_IDS},
        hash_input=PICTURE_ID,
        notes=(NOTE,),
    )


def read_svhn(path: Path, /) -> Labelled:
    """Read grey pictures, (count, 32, 32), and their digits; the file has 10 for a 0."""
    try:
        fields = loadmat(path)
        colours, digits = fields["X"], fields["y"]
        return _checked(colours, digits)
    except Exception as error:  # SciPy (1.17) raises whatever a wrong byte leads to
        raise damaged(path, error) from error


def _checked(colours: NDArray[np.uint8], digits: NDArray[np.uint8]) -> Labelled:
    if (
        colours.dtype != np.uint8
        or colours.shape != (SIZE, SIZE, 3, digits.size)
        or not digits.size
    ):
        msg = f"pictures must be {SIZE} x {SIZE} in 3 colours, as many as digits"
        raise DataError(msg)
    if digits.min() < 1 or digits.max() > NUM_CLASSES:
        msg = f"digits must be in [1, {NUM_CLASSES}], got {digits.min()} to {digits.max()}"
        raise DataError(msg)
    # Integers, so that the pictures are the same on every machine.
    grey = colours.sum(axis=2, dtype=np.uint16) // np.uint16(3)
    pictures = np.ascontiguousarray(np.moveaxis(grey.astype(np.uint8), -1, 0))
    return Labelled(pictures, digits.ravel().astype(np.int64) % NUM_CLASSES)


def _read_base(data_dir: Path, seed: int) -> list[Labelled]:
    train, test = (
        read_svhn(find_file(data_dir, f"svhn/{part}_32x32.mat", dataset=MNIST_SVHN))
        for part in ("train", "test")
    )
    return [*divide_train(train, seed=seed), test]


def _padded(base: Labelled) -> Labelled:
    border = (SIZE - base.pictures.shape[1]) // 2
    widths = ((0, 0), (border, border), (border, border))
    return Labelled(np.pad(base.pictures, widths), base.labels)


def _mix(written: Labelled, photographed: Labelled, generator: np.random.Generator) -> Split:
    order = generator.permutation(len(written.labels) + len(photographed.labels))
    pictures = np.concatenate([written.pictures, photographed.pictures])[order]
    labels = np.concatenate([written.labels, photographed.labels])[order]
    return Split(
        inputs={
            PIXELS: torch.from_numpy(pictures).float().div_(WHITE),
            PICTURE_ID: torch.from_numpy(picture_ids(pictures)),
        },
        targets=(torch.from_numpy(labels),),
        present=(None,),
    )
