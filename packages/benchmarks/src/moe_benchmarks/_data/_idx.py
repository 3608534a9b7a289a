"""Files in the idx format of MNIST, compressed or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import DataError
from moe_benchmarks._data._source_files import damaged

GZIP_MAGIC = b"\x1f\x8b"
# Two zero bytes, the type of the elements (8: unsigned bytes), the number of axes.
HEADER = struct.Struct(">HBB")
UNSIGNED_BYTE = 8


def read_idx(path: Path, /, *, ndim: int) -> NDArray[np.uint8]:
    """Read an array of unsigned bytes with so many axes.

    Raises
    ------
    DataError
        If the file is cut short, corrupt, or holds something else; the message names it.
    """
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
        return _parse(content, ndim)
    except (DataError, OSError, EOFError, zlib.error, struct.error) as error:
        raise damaged(path, error) from error


def read_labelled(
    images: Path, labels: Path, /, *, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read pictures, (count, height, width), and their labels, (count,), in [0, num_classes)."""
    pictures, classes = read_idx(images, ndim=3), read_idx(labels, ndim=1)
    if len(pictures) != len(classes):
        raise damaged(labels, f"{len(pictures)} pictures have {len(classes)} labels")
    if not len(classes) or classes.max() >= num_classes:
        raise damaged(labels, f"labels must be in [0, {num_classes}), and there must be some")
    return pictures, classes.astype(np.int64)


def _parse(content: bytes, ndim: int) -> NDArray[Any]:
    zero, kind, found = HEADER.unpack_from(content)
    if (zero, kind, found) != (0, UNSIGNED_BYTE, ndim):
        msg = f"it does not start like an idx file of bytes with {ndim} axes"
        raise DataError(msg)
    shape = struct.unpack_from(f">{ndim}I", content, HEADER.size)
    start = HEADER.size + 4 * ndim
    if len(content) - start != math.prod(shape):
        msg = f"it should hold {math.prod(shape)} bytes after its header, it holds " + str(
            len(content) - start
        )
        raise DataError(msg)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
