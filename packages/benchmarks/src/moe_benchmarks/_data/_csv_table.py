"""A user's own table: a CSV file with users, items and what to predict."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import (
    ITEM,
    USER,
    DataError,
    Dataset,
    Split,
    Task,
    check_targets,
)

# Shares of the rows for training and validation; the rest is for the test.
TRAIN_SHARE, VALIDATION_SHARE = 0.8, 0.1
MIN_ROWS = 10  # with fewer a split would be empty
BINARY_VALUES = (0.0, 1.0)
LARGEST_NUMBER = float(np.finfo(np.float32).max)  # what targets are held in


def read_table(
    path: Path, /, *, user: str, item: str, targets: Sequence[str], seed: int = 0
) -> Dataset:
    """Read a CSV file with a header, and split its rows 80/10/10 at random.

    Parameters
    ----------
    path : Path
        UTF-8 text; columns are separated by commas, and those that are not named are ignored.
    user, item : str
        Columns of ids: any text. The data set numbers them in the order of the text.
    targets : sequence of str
        Columns to predict, a task each: binary where all values are 0 or 1, otherwise
        regression, in the column's own unit. An empty cell does not count in its task.
    seed : int
        Which rows go into which split.

    Raises
    ------
    DataError
        If the file, a column or a value is missing or cannot be read, or a column has no value
        in a split; the message names the column, the line of the file and the value.
    ValueError
        If `targets` is empty or names a column twice.
    """
    names = [user, item, *targets]
    if not targets or len(set(names)) < len(names):
        msg = f"`user`, `item` and `targets` must name different columns, got {names}."
        raise ValueError(msg)
    columns = _read_columns(path, user, item, targets)
    users, user_index = np.unique(columns.users, return_inverse=True)
    items, item_index = np.unique(columns.items, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(user_index))
    cuts = np.round(np.cumsum([TRAIN_SHARE, VALIDATION_SHARE]) * len(order)).astype(int)
    train, validation, test = (
        _split(user_index[rows], item_index[rows], columns.values[:, rows])
        for rows in np.split(order, cuts)
    )
    dataset = Dataset(
        name=path.stem,
        tasks=tuple(map(_task, targets, columns.values)),
        train=train,
        validation=validation,
        test=test,
        num_ids={USER: len(users), ITEM: len(items)},
        hash_input=ITEM,
    )
    check_targets(dataset, str(path))
    return dataset


class _Columns(NamedTuple):
    users: list[str]
    items: list[str]
    values: NDArray[np.float64]  # (targets, rows); NaN: empty


def _read_columns(path: Path, user: str, item: str, targets: Sequence[str]) -> _Columns:
    users: list[str] = []
    items: list[str] = []
    values = []
    for line, row in _rows(path, [user, item, *targets]):
        for name, ids in ((user, users), (item, items)):
            if not row[name]:
                msg = f"{path}: column {name!r} must not be empty, got '' in line {line}."
                raise DataError(msg)
            ids.append(row[name])
        values.append([_number(path, name, line, row[name]) for name in targets])
    if len(users) < MIN_ROWS:
        msg = f"{path} must have at least {MIN_ROWS} rows, got {len(users)}."
        raise DataError(msg)
    table = np.array(values).T
    for name, column in zip(targets, table, strict=True):
        if np.isnan(column).all():
            msg = f"{path}: column {name!r} must have a value, all of its cells are empty."
            raise DataError(msg)
    return _Columns(users, items, table)


def _rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the named cells of each row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or ())
            for name in names:
                if name not in header:
                    msg = f"{path} has no column {name!r}; it has {header}."
                    raise DataError(msg)
                if header.count(name) > 1:
                    msg = f"{path} must have one column {name!r}, got several."
                    raise DataError(msg)
            for row in reader:
                if None in row or None in row.values():
                    msg = f"{path}: line {reader.line_num} must have as many cells as the header."
                    raise DataError(msg)
                yield reader.line_num, {name: row[name].strip() for name in names}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read ({error})."
        raise DataError(msg) from error


def _number(path: Path, name: str, line: int, text: str) -> float:
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_NUMBER:
        msg = (
            f"{path}: column {name!r} must hold numbers that are finite in float32, "
            f"got {text!r} in line {line}."
        )
        raise DataError(msg)
    return value


def _task(name: str, column: NDArray[np.float64]) -> Task:
    is_binary = np.isin(column[~np.isnan(column)], BINARY_VALUES).all()
    return Task(name, "binary" if is_binary else "regression")


def _split(user: NDArray[np.int64], item: NDArray[np.int64], values: NDArray[np.float64]) -> Split:
    present = [None if not np.isnan(column).any() else ~np.isnan(column) for column in values]
    return Split(
        inputs={USER: torch.from_numpy(user), ITEM: torch.from_numpy(item)},
        targets=tuple(torch.from_numpy(np.nan_to_num(values).astype(np.float32))),
        present=tuple(None if mask is None else torch.from_numpy(mask) for mask in present),
    )
