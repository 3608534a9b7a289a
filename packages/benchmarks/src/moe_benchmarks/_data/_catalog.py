"""The data sets by name."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from moe_benchmarks._data import _sources as sources
from moe_benchmarks._data._books import BOOKS, load_books
from moe_benchmarks._data._celeba import CELEBA, load_celeba
from moe_benchmarks._data._dataset import DataError, Dataset
from moe_benchmarks._data._jester import JESTER, JESTER_1, load_jester, load_jester_1
from moe_benchmarks._data._movielens import (
    COMET_SPLIT,
    ML_1M,
    ML_100K,
    load_movielens_1m,
    load_movielens_1m_comet_split,
    load_movielens_100k,
)
from moe_benchmarks._data._multi_mnist import (
    DIGITS,
    DIGITS_COUNTS,
    MULTI_FASHION_MNIST,
    MULTI_MNIST,
    PAPER_COUNTS,
    load_digits_overlay,
    load_multi_fashion_mnist,
    load_multi_mnist,
)
from moe_benchmarks._data._overlay import RowCounts
from moe_benchmarks._data._share import check_share, scaled, with_rows, with_users
from moe_benchmarks._data._sources import SourceFile
from moe_benchmarks._data._svhn import MNIST_SVHN, load_mnist_svhn
from moe_benchmarks._device import CPU

DATA_VARIABLE = "MOE_BENCH_DATA"
# (data folder, share, seed)
Load = Callable[[Path, float, int], Dataset]


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded by its name."""

    what: str  # one sentence
    files: tuple[SourceFile, ...]
    licence: str  # one sentence, to be shown before a download
    load: Load


def load(
    name: str,
    data_dir: Path | None = None,
    /,
    *,
    share: float = 1.0,
    seed: int = 0,
    device: torch.device = CPU,
) -> Dataset:
    """Read or compose a data set.

    Parameters
    ----------
    name : str
        One of `DATASETS`.
    data_dir : Path, optional
        Folder of the published files; `data_folder` says which by default.
    share : float
        In (0, 1]: share of the users, with all their rows, or of the rows where there are no
        users. 1 is the whole.
    seed : int
        Of all that is random in it: unrated items, splits, composed pictures, the share.
    device : torch.device
        Where its rows are put.

    Raises
    ------
    DataError
        If there is no such data set, or a file is missing or damaged.
    ValueError
        If `share` is outside (0, 1].
    """
    check_share(share)
    return source(name).load(data_folder(data_dir), share, seed).to(device)


def source(name: str, /) -> Source:
    """Return what is known of a data set, or name those that there are."""
    if name not in DATASETS:
        msg = f"the data set must be one of {', '.join(DATASETS)}, got {name!r}."
        raise DataError(msg)
    return DATASETS[name]


def data_folder(given: Path | None = None, /) -> Path:
    """Return the given folder, or that of `MOE_BENCH_DATA`, or the cache folder."""
    named = os.environ.get(DATA_VARIABLE)
    return given or (Path(named) if named else Path.home() / ".cache" / "moe-benchmarks")


def _users(read: Callable[[Path, int], Dataset]) -> Load:
    return lambda folder, share, seed: with_users(read(folder, seed), share, seed=seed)


def _rows(read: Callable[[Path, int], Dataset]) -> Load:
    return lambda folder, share, seed: with_rows(read(folder, seed), share, seed=seed)


def _composed(compose: Callable[[Path, RowCounts, int], Dataset], counts: RowCounts) -> Load:
    """Compose fewer pictures, from as many base pictures."""

    def load_share(folder: Path, share: float, seed: int) -> Dataset:
        return compose(folder, RowCounts(*(scaled(count, share) for count in counts)), seed)

    return load_share


DATASETS: Mapping[str, Source] = MappingProxyType(
    {
        ML_1M: Source(
            "A million ratings of 3,706 movies by 6,040 users, and as many unwatched movies.",
            (sources.ML_1M_FILE,),
            sources.MOVIELENS_LICENCE,
            _users(lambda folder, seed: load_movielens_1m(folder, seed=seed)),
        ),
        ML_100K: Source(
            "100,000 ratings of 1,682 movies by 943 users, and as many unwatched movies.",
            (sources.ML_100K_FILE,),
            sources.MOVIELENS_LICENCE,
            _users(lambda folder, seed: load_movielens_100k(folder, seed=seed)),
        ),
        COMET_SPLIT: Source(
            "MovieLens-1M in the paper's split; its files are not published and not downloaded.",
            sources.COMET_SPLIT_FILES,
            sources.MOVIELENS_LICENCE,
            _users(lambda folder, _seed: load_movielens_1m_comet_split(folder)),
        ),
        JESTER: Source(
            "4.1 million ratings of 100 jokes by 73,421 users, and unrated jokes.",
            sources.JESTER_FILES,
            sources.JESTER_LICENCE,
            _users(lambda folder, seed: load_jester(folder, seed=seed)),
        ),
        JESTER_1: Source(
            "The first of Jester's three parts: 1.8 million ratings by 24,983 users.",
            sources.JESTER_FILES[:1],
            sources.JESTER_LICENCE,
            _users(lambda folder, seed: load_jester_1(folder, seed=seed)),
        ),
        BOOKS: Source(
            "Book-Crossing's explicit ratings, 1 to 10, of books and by users with five or more.",
            (sources.BOOKS_FILE,),
            sources.BOOKS_LICENCE,
            _users(lambda folder, seed: load_books(folder, seed=seed)),
        ),
        MULTI_MNIST: Source(
            "Two MNIST digits in a picture of 36 x 36 pixels; two tasks.",
            sources.MNIST_FILES,
            sources.MNIST_LICENCE,
            _composed(
                lambda folder, counts, seed: load_multi_mnist(folder, counts=counts, seed=seed),
                PAPER_COUNTS,
            ),
        ),
        MULTI_FASHION_MNIST: Source(
            "Two Fashion-MNIST pieces of clothing in a picture of 36 x 36 pixels; two tasks.",
            sources.FASHION_MNIST_FILES,
            sources.FASHION_MNIST_LICENCE,
            _composed(
                lambda folder, counts, seed: load_multi_fashion_mnist(
                    folder, counts=counts, seed=seed
                ),
                PAPER_COUNTS,
            ),
        ),
        MNIST_SVHN: Source(
            "MNIST and SVHN together: written and photographed digits of 32 x 32 pixels.",
            (*sources.MNIST_FILES, *sources.SVHN_FILES),
            f"{sources.MNIST_LICENCE} {sources.SVHN_LICENCE}",
            _rows(lambda folder, seed: load_mnist_svhn(folder, seed=seed)),
        ),
        CELEBA: Source(
            "202,599 faces of 32 x 32 pixels with ten attributes; to be brought by hand.",
            sources.CELEBA_FILES,
            sources.CELEBA_LICENCE,
            lambda folder, share, seed: load_celeba(folder, share=share, seed=seed),
        ),
        DIGITS: Source(
            "Two of scikit-learn's digits in a picture of 10 x 10 pixels; needs no file.",
            (),
            sources.DIGITS_LICENCE,
            _composed(
                lambda _folder, counts, seed: load_digits_overlay(counts=counts, seed=seed),
                DIGITS_COUNTS,
            ),
        ),
    }
)
