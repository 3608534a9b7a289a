"""Miniatures in the published formats, of random numbers."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NUM_USERS, NUM_ITEMS = 40, 30


def rated_pairs(
    num_users: int = NUM_USERS, num_items: int = NUM_ITEMS, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return users (from 0) and items of random pairs, each once; every user and item occurs."""
    rated = np.random.default_rng(seed).random((num_users, num_items)) < 0.3
    rated[np.arange(num_users), np.arange(num_users) % num_items] = True
    user, item = np.nonzero(rated)
    return user, item


def write_zip(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def write_movielens(folder: Path) -> int:
    """Write both MovieLens archives, and return how many ratings they hold."""
    user, item = rated_pairs()
    stars = 1 + (user + item) % 5
    # Ids with gaps, as published.
    rows = list(zip(user * 3 + 1, item * 7 + 5, stars, strict=True))
    text = "".join(f"{u}::{i}::{s}::978300760\n" for u, i, s in rows)
    write_zip(folder / "ml-1m.zip", "ml-1m/ratings.dat", text.encode())
    write_zip(folder / "ml-100k.zip", "ml-100k/u.data", text.replace("::", "\t").encode())
    return len(rows)


def write_comet_split(folder: Path) -> None:
    (folder / "movielens-1m-comet-split").mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 80), ("val", 12), ("test", 10)):
        watched = generator.integers(2, size=count).astype(np.uint8)
        np.savez(
            folder / "movielens-1m-comet-split" / f"{part}.npz",
            user=generator.integers(20, size=count).astype(np.uint16),
            movie=generator.integers(30, size=count).astype(np.uint16),
            rating=watched * generator.integers(1, 6, size=count).astype(np.uint8),
            watched=watched,
        )


def write_jester(folder: Path, parts: tuple[int, ...] = (1, 2, 3)) -> int:
    """Write parts of 40 users, and return how many ratings all hold."""
    count = 0
    for part in parts:
        user, joke = rated_pairs(NUM_USERS, 100, seed=part)
        ratings = np.full((NUM_USERS, 100), 99.0)
        ratings[user, joke] = np.random.default_rng(part).uniform(-10, 10, len(user)).round(2)
        table = np.column_stack([(ratings != 99).sum(axis=1), ratings])
        text = io.StringIO()
        np.savetxt(text, table, fmt="%g", delimiter=",")
        name = f"jester-data-{part}"
        write_zip(folder / f"{name}.zip", f"{name}.csv", text.getvalue().encode())
        count += len(user)
    return count


def write_books(folder: Path, lines: list[str] | None = None) -> None:
    user, book = rated_pairs()
    rows = [
        f'"{u + 276725}";"03454{b:04}X";"{1 + (u + b) % 10}"'
        for u, b in zip(user, book, strict=True)
    ]
    extra = ['"1";"rare";"7"', '"276725";"implicit";"0"', '"276725";"caf\xe9 \\" x";"3"']
    text = "\r\n".join(['"User-ID";"ISBN";"Book-Rating"', *(lines or [*rows, *extra]), ""])
    write_zip(folder / "BX-CSV-Dump.zip", "BX-Book-Ratings.csv", text.encode("latin-1"))


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, name: str = "mnist", num_train: int = 60, num_test: int = 20) -> None:
    """Write pictures whose first pixel says which base picture they are."""
    (folder / name).mkdir()
    generator = np.random.default_rng(0)
    first = 0
    for part, count in (("train", num_train), ("t10k", num_test)):
        pictures = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        pictures[:, 0, 0] = np.arange(first, first + count)
        first += count
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            path = folder / name / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array)))
