"""Jester: which of a hundred jokes a user rated, and how funny they were."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import DataError, Dataset
from moe_benchmarks._data._ratings import dataset_from_ratings
from moe_benchmarks._data._source_files import damaged, find_file, read_member

SEEN = "rated"
JESTER, JESTER_1 = "jester", "jester-1"
PARTS = (1, 2, 3)
NUM_JOKES = 100
NOT_RATED = 99
LARGEST_RATING = 10
PART_NOTE = "Only part 1 of the 3 parts of Jester is used: the paper's figures are of all three."


def load_jester(data_dir: Path, /, *, seed: int = 0) -> Dataset:
    """Read all three parts of Jester, `jester-data-1.zip` to `jester-data-3.zip`."""
    return _load(JESTER, data_dir, PARTS, seed, ())


def load_jester_1(data_dir: Path, /, *, seed: int = 0) -> Dataset:
    """Read part 1 of Jester, `jester-data-1.zip`: 24,983 users who rated 36 jokes or more."""
    return _load(JESTER_1, data_dir, PARTS[:1], seed, (PART_NOTE,))


def _load(
    name: str, data_dir: Path, parts: Sequence[int], seed: int, notes: Sequence[str]
) -> Dataset:
    paths = [find_file(data_dir, f"jester-data-{part}.zip", dataset=name) for part in parts]
    ratings = np.concatenate([_read(path) for path in paths])
    user, joke = np.nonzero(ratings != NOT_RATED)
    return dataset_from_ratings(
        name, user, joke, ratings[user, joke], seen=SEEN, seed=seed, notes=notes
    )


def _read(path: Path) -> NDArray[Any]:
    """Return the ratings of one part, (users, jokes), from a csv or the publisher's xls."""
    name, content = read_member(path, ".csv", ".xls")
    try:
        if name.endswith(".xls"):
            return _checked(_read_xls(content))
        table = np.loadtxt(io.BytesIO(content), dtype=np.float64, delimiter=",", ndmin=2)
        return _checked(table)
    except ValueError as error:
        raise damaged(path, error) from error


def _read_xls(content: bytes) -> NDArray[np.float64]:
    try:
        import xlrd  # noqa: PLC0415, an extra
    except ImportError as error:
        msg = 'Jester is published as xls files: `pip install "moe-benchmarks[jester]"` reads them.'
        raise ModuleNotFoundError(msg) from error
    try:
        sheet = xlrd.open_workbook(file_contents=content).sheet_by_index(0)
        rows = [sheet.row_values(row) for row in range(sheet.nrows)]
    except Exception as error:  # xlrd (2.0) has errors without a common class, and others'
        raise DataError(str(error)) from error
    return np.array(rows, dtype=np.float64)


def _checked(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Check counts and ranges, and drop the count."""
    if table.ndim != 2 or table.shape[1] != NUM_JOKES + 1:
        msg = f"a row must have a count and {NUM_JOKES} ratings, got a table of {table.shape}"
        raise DataError(msg)
    count, ratings = table[:, 0], table[:, 1:]
    rated = ratings != NOT_RATED
    wrong = np.flatnonzero((count != rated.sum(axis=1)) | (count == 0))
    if len(wrong):
        msg = (
            f"the count of row {wrong[0] + 1} must be that of its ratings, at least 1, "
            f"got {count[wrong[0]]:g} and {rated[wrong[0]].sum()} ratings"
        )
        raise DataError(msg)
    if not (np.abs(ratings[rated]) <= LARGEST_RATING).all():
        msg = f"a rating must be in [-{LARGEST_RATING}, {LARGEST_RATING}], or {NOT_RATED}"
        raise DataError(msg)
    return ratings
