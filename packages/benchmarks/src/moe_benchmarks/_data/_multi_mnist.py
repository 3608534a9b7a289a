"""MultiMNIST and MultiFashionMNIST, composed from the published idx files; digits in small."""

from pathlib import Path

import numpy as np

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._data._idx import read_labelled
from moe_benchmarks._data._overlay import Labelled, RowCounts, overlay_dataset
from moe_benchmarks._data._source_files import damaged, find_file
from moe_benchmarks._two_digits import LARGEST_VALUE, SHIFT, read_digits, split_base

MULTI_MNIST, MULTI_FASHION_MNIST, DIGITS = "multi-mnist", "multi-fashion-mnist", "digits"
NUM_CLASSES = 10
PAPER_COUNTS = RowCounts(100_000, 20_000, 20_000)
PAPER_SHIFT = 4  # pixels
PICTURE_SIZE = 28  # pixels
WHITE = 255
# One in six of the published training pictures is for validation: 10,000, as for the test.
VALIDATION_PART = 6
# As many rows as the quickstart's.
DIGITS_COUNTS = RowCounts(20_000, 3_000, 3_000)


def load_multi_mnist(
    data_dir: Path, /, *, counts: RowCounts = PAPER_COUNTS, seed: int = 0
) -> Dataset:
    """Compose MultiMNIST from the idx files in the folder `mnist`."""
    return _load(MULTI_MNIST, data_dir, "mnist", counts, seed)


def load_multi_fashion_mnist(
    data_dir: Path, /, *, counts: RowCounts = PAPER_COUNTS, seed: int = 0
) -> Dataset:
    """Compose MultiFashionMNIST from the idx files in the folder `fashion-mnist`."""
    return _load(MULTI_FASHION_MNIST, data_dir, "fashion-mnist", counts, seed)


def load_digits_overlay(*, counts: RowCounts = DIGITS_COUNTS, seed: int = 0) -> Dataset:
    """Compose the quickstart's two-digit pictures, from scikit-learn's digits; needs no file."""
    pictures, labels = read_digits()
    rows = split_base(len(labels), np.random.default_rng(seed))
    base = [Labelled(pictures[row], labels[row]) for row in rows]
    return overlay_dataset(
        DIGITS,
        base,
        counts,
        shift=SHIFT,
        largest=LARGEST_VALUE,
        num_classes=NUM_CLASSES,
        seed=seed,
    )


def read_base(data_dir: Path, folder: str, /, *, dataset: str, seed: int) -> list[Labelled]:
    """Return published pictures by split: the training file's are divided."""
    train, test = (_read(data_dir, folder, part, dataset) for part in ("train", "t10k"))
    return [*divide_train(train, seed=seed), test]


def divide_train(train: Labelled, /, *, seed: int) -> tuple[Labelled, Labelled]:
    """Divide published training pictures, at random, into training and validation ones."""
    order = np.random.default_rng(seed).permutation(len(train.labels))
    validation, rest = np.split(order, [-(-len(order) // VALIDATION_PART)])
    return (
        Labelled(train.pictures[rest], train.labels[rest]),
        Labelled(train.pictures[validation], train.labels[validation]),
    )


def _load(name: str, data_dir: Path, folder: str, counts: RowCounts, seed: int) -> Dataset:
    return overlay_dataset(
        name,
        read_base(data_dir, folder, dataset=name, seed=seed),
        counts,
        shift=PAPER_SHIFT,
        largest=WHITE,
        num_classes=NUM_CLASSES,
        seed=seed,
    )


def _read(data_dir: Path, folder: str, part: str, dataset: str) -> Labelled:
    images, labels = (
        find_file(data_dir, f"{folder}/{part}-{kind}-ubyte.gz", dataset=dataset)
        for kind in ("images-idx3", "labels-idx1")
    )
    pictures, classes = read_labelled(images, labels, num_classes=NUM_CLASSES)
    if pictures.shape[1:] != (PICTURE_SIZE, PICTURE_SIZE):
        raise damaged(images, f"its pictures are {pictures.shape[1:]}, not 28 x 28 pixels")
    return Labelled(pictures, classes)
