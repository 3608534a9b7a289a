"""MovieLens: who watched which movie, and how many stars it got."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._data._dataset import ITEM, USER, DataError, Dataset, Split
from moe_benchmarks._data._ratings import dataset_from_ratings, rating_split, rating_tasks
from moe_benchmarks._data._source_files import ZIP_ERRORS, damaged, find_file, read_member

SEEN = "watched"
STARS = (1, 5)
ML_1M, ML_100K, COMET_SPLIT = "movielens-1m", "movielens-100k", "movielens-1m-comet-split"
COMET_FOLDER = "movielens-1m-comet-split"
COMET_FIELDS = ("user", "movie", "rating", "watched")
COMET_NOTE = (
    "The rows are the paper's split, but for the movies of the unwatched training rows, "
    "which were sampled again."
)


def load_movielens_1m(data_dir: Path, /, *, seed: int = 0) -> Dataset:
    """Read `ml-1m.zip`: a million ratings by 6,040 users."""
    path = find_file(data_dir, "ml-1m.zip", dataset=ML_1M)
    _, text = read_member(path, "ratings.dat")
    return _from_text(ML_1M, path, text.replace(b"::", b"\t"), seed)


def load_movielens_100k(data_dir: Path, /, *, seed: int = 0) -> Dataset:
    """Read `ml-100k.zip`: a hundred thousand ratings by 943 users."""
    path = find_file(data_dir, "ml-100k.zip", dataset=ML_100K)
    _, text = read_member(path, "u.data")
    return _from_text(ML_100K, path, text, seed)


def load_movielens_1m_comet_split(data_dir: Path, /) -> Dataset:
    """Read the paper's split of MovieLens-1M: `train.npz`, `val.npz` and `test.npz` in a folder."""
    train, validation, test = (
        _read_npz(find_file(data_dir, f"{COMET_FOLDER}/{part}.npz", dataset=COMET_SPLIT))
        for part in ("train", "val", "test")
    )
    largest = {
        name: max(int(split.inputs[name].max()) for split in (train, validation, test))
        for name in (USER, ITEM)
    }
    return Dataset(
        name=COMET_SPLIT,
        tasks=rating_tasks(SEEN),
        train=train,
        validation=validation,
        test=test,
        num_ids={name: value + 1 for name, value in largest.items()},
        hash_input=ITEM,
        notes=(COMET_NOTE,),
    )


def _from_text(name: str, path: Path, text: bytes, seed: int) -> Dataset:
    """Read the columns user, movie and stars; the fourth is a time."""
    try:
        table = np.loadtxt(
            io.BytesIO(text), dtype=np.int64, delimiter="\t", usecols=(0, 1, 2), ndmin=2
        )
        user, movie, stars = table.T
        _check_stars(stars)
        return dataset_from_ratings(name, user, movie, stars, seen=SEEN, seed=seed)
    except ValueError as error:
        raise damaged(path, error) from error


def _read_npz(path: Path) -> Split:
    try:
        # Opened here, because numpy (2.4) leaves a damaged file open.
        with path.open("rb") as file, np.load(file) as fields:
            user, movie, stars, watched = (fields[name] for name in COMET_FIELDS)
        is_seen = watched.astype(bool)
        if not len(user) or {len(user)} != {len(movie), len(stars), len(watched)}:
            msg = f"the fields {', '.join(COMET_FIELDS)} must have the same length, at least 1"
            raise DataError(msg)
        _check_stars(stars[is_seen])
    except (ValueError, KeyError, *ZIP_ERRORS) as error:
        raise damaged(path, error) from error
    return rating_split(user, movie, stars, is_seen)


def _check_stars(stars: NDArray[Any]) -> None:
    wrong = stars[(stars < STARS[0]) | (stars > STARS[1])]
    if len(wrong):
        msg = f"a rating must be in {list(STARS)}, got {wrong[0]}"
        raise DataError(msg)
