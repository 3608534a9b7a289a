"""CelebA: pictures of faces, and which attributes each has."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from moe_benchmarks._data._dataset import PICTURE_ID, PIXELS, Dataset, Split, Task
from moe_benchmarks._data._multi_mnist import WHITE
from moe_benchmarks._data._picture_ids import NUM_PICTURE_IDS, picture_ids
from moe_benchmarks._data._share import rows_note, some_rows
from moe_benchmarks._data._source_files import damaged, find_file

CELEBA = "celeba"
ARCHIVE, ATTRIBUTES, PARTITION = (
    f"celeba/{name}"
    for name in ("img_align_celeba.zip", "list_attr_celeba.txt", "list_eval_partition.txt")
)
NUM_TASKS = 10
SIZE = 32  # pixels, of the square in the middle of each picture
# Smallest size, in pixels, at which a picture is decoded before it is averaged.
DECODED_SIZE = 2 * SIZE
NOTE = (
    f"Pictures are grey and {SIZE} x {SIZE} pixels, from the middle of CelebA's aligned ones; "
    f"tasks are the {NUM_TASKS} attributes that come nearest to half of the training pictures."
)


class Labels(NamedTuple):
    """What the text files say of all pictures."""

    names: list[str]  # of attributes
    files: list[str]  # of pictures
    present: NDArray[np.bool_]  # (pictures, attributes)
    part: NDArray[np.int64]  # (pictures,): 0 training, 1 validation, 2 test


def load_celeba(data_dir: Path, /, *, share: float = 1.0, seed: int = 0) -> Dataset:
    """Read the aligned pictures and two text files in `celeba`, in the published parts.

    Which ten of the forty attributes the paper has is not known. `share` is that of the rows of
    each part: other pictures are not decoded.
    """
    labels = read_labels(data_dir)
    tasks = most_even(labels.present[labels.part == 0])
    generator = np.random.default_rng(seed)
    path = find_file(data_dir, ARCHIVE, dataset=CELEBA)
    splits = []
    for part in range(3):
        rows = np.flatnonzero(labels.part == part)
        rows = rows[some_rows(len(rows), share, generator)]
        pictures = read_pictures(path, [labels.files[row] for row in rows])
        splits.append(_split(pictures, labels.present[rows][:, tasks]))
    train, validation, test = splits
    return Dataset(
        name=CELEBA,
        tasks=tuple(Task(labels.names[task], "binary") for task in tasks),
        train=train,
        validation=validation,
        test=test,
        num_ids={PICTURE_ID: NUM_PICTURE_IDS},
        hash_input=PICTURE_ID,
        notes=(NOTE,) if share == 1 else (NOTE, rows_note(share, seed)),
    )


def read_labels(data_dir: Path, /) -> Labels:
    """Read the attributes and the part of each picture."""
    path = find_file(data_dir, ATTRIBUTES, dataset=CELEBA)
    try:
        count, header, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines]
        values = np.array([row[1:] for row in rows], dtype=np.int8)
        names, files = header.split(), [row[0] for row in rows]
        if len(names) < NUM_TASKS:
            msg = f"{NUM_TASKS} attributes or more are expected, got {len(names)}"
            raise ValueError(msg)  # noqa: TRY301 - told with the path, below
        if values.shape != (int(count), len(names)) or not np.isin(values, (-1, 1)).all():
            msg = f"{count} lines of {len(names)} values of 1 or -1 are expected"
            raise ValueError(msg)  # noqa: TRY301 - told with the path, below
    except (ValueError, OverflowError, OSError) as error:
        raise damaged(path, error) from error
    return Labels(names, files, values == 1, _parts(data_dir, files))


def most_even(present: NDArray[np.bool_], /) -> NDArray[np.int64]:
    """Return the attributes (pictures, attributes) next to one half, in the file's order."""
    distance = np.abs(present.mean(0) - 0.5)
    return np.sort(np.argsort(distance, kind="stable")[:NUM_TASKS])


def read_pictures(path: Path, files: Iterable[str], /) -> NDArray[np.uint8]:
    """Decode pictures of the archive, (count, `SIZE`, `SIZE`)."""
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            pictures = []
            for name in files:
                pictures.append(_decoded(archive.read(f"img_align_celeba/{name}")))
    except Exception as error:  # Pillow (13) and zipfile raise whatever a wrong byte leads to
        raise damaged(path, f"{name or 'as a whole'}: {error}") from error
    return np.stack(pictures)


def _decoded(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as picture:
        # Of a JPEG no more is decoded than is needed.
        picture.draft("L", (DECODED_SIZE, DECODED_SIZE))
        grey = picture.convert("L")
    side = min(grey.size)
    left, top = ((length - side) // 2 for length in grey.size)
    square = (left, top, left + side, top + side)
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BOX, box=square))


def _parts(data_dir: Path, files: list[str]) -> NDArray[np.int64]:
    path = find_file(data_dir, PARTITION, dataset=CELEBA)
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        parts = np.array([int(part) for _, part in rows])
        if [name for name, _ in rows] != files or set(parts.tolist()) != {0, 1, 2}:
            msg = f"the {len(files)} pictures of {ATTRIBUTES} in the parts 0, 1 and 2 are expected"
            raise ValueError(msg)  # noqa: TRY301 - told with the path, below
    except (ValueError, OSError) as error:
        raise damaged(path, error) from error
    return parts


def _split(pictures: NDArray[np.uint8], present: NDArray[np.bool_]) -> Split:
    return Split(
        inputs={
            PIXELS: torch.from_numpy(pictures).float().div_(WHITE),
            PICTURE_ID: torch.from_numpy(picture_ids(pictures)),
        },
        targets=tuple(torch.from_numpy(values).float() for values in present.T),
        present=(None,) * present.shape[1],
    )
