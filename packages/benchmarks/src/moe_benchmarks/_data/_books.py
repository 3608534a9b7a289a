"""Book-Crossing: which books a user rated, and how high."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import DataError, Dataset
from moe_benchmarks._data._ratings import dataset_from_ratings
from moe_benchmarks._data._source_files import damaged, find_file, read_member

SEEN = "read"
BOOKS = "book-crossing"
FILE = "BX-CSV-Dump.zip"
HEADER = ["User-ID", "ISBN", "Book-Rating"]
LARGEST_RATING = 10
# An embedding that is trained on fewer rows is mostly its initial value; 5 ratings are the
# usual core in work on recommenders, and the paper does not state its own.
MIN_RATINGS = 5


def load_books(data_dir: Path, /, *, seed: int = 0, min_ratings: int = MIN_RATINGS) -> Dataset:
    """Read `BX-CSV-Dump.zip`, without implicit ratings, rare books and rare users.

    Parameters
    ----------
    data_dir : Path
        Folder of the file.
    seed : int
        Of the unrated books and of the split.
    min_ratings : int
        Users and books with fewer explicit ratings are dropped, again and again until every
        user and every book that is left has as many among those left.
    """
    path = find_file(data_dir, FILE, dataset=BOOKS)
    _, content = read_member(path, "BX-Book-Ratings.csv")
    try:
        user, book, rating = _read(content.decode("latin-1"))
        kept = core(user, book, min_ratings)
        note = (
            "Ratings of 0, which mean that none was given, are dropped, and so are users and "
            f"books with fewer than {min_ratings} ratings."
        )
        return dataset_from_ratings(
            BOOKS, user[kept], book[kept], rating[kept], seen=SEEN, seed=seed, notes=(note,)
        )
    except (ValueError, csv.Error) as error:
        raise damaged(path, error) from error


def core(
    user: NDArray[np.int64], item: NDArray[np.int64], min_ratings: int, /
) -> NDArray[np.int64]:
    """Return the ratings of the largest set whose users and items have so many each."""
    kept = np.arange(len(user))
    while len(kept):
        enough = (np.bincount(user[kept])[user[kept]] >= min_ratings) & (
            np.bincount(item[kept])[item[kept]] >= min_ratings
        )
        if enough.all():
            break
        kept = kept[enough]
    return kept


def _read(text: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return user, book (numbered) and rating of the explicit ratings, each pair once."""
    lines = csv.reader(io.StringIO(text), delimiter=";", quotechar='"', escapechar="\\")
    if next(lines, None) != HEADER:
        msg = f"the first line must name the columns {HEADER}"
        raise DataError(msg)
    numbers: dict[str, int] = {}
    ratings: dict[tuple[int, int], int] = {}
    for row, fields in enumerate(lines, start=2):
        if len(fields) != len(HEADER) or not (fields[0].isdigit() and fields[2].isdigit()):
            msg = f"line {row} must hold a user, a book and a rating, got {fields}"
            raise DataError(msg)
        user, book, rating = int(fields[0]), fields[1], int(fields[2])
        if rating > LARGEST_RATING:
            msg = f"a rating must be in [0, {LARGEST_RATING}], got {rating} in line {row}"
            raise DataError(msg)
        if rating:
            # A pair that is there twice keeps its first rating.
            ratings.setdefault((user, numbers.setdefault(book, len(numbers))), rating)
    pairs = np.array(list(ratings), dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1], np.array(list(ratings.values()), dtype=np.float32)
