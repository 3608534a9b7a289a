"""What the trials of two variants say of each other: differences, each bounded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    chance_of,
    draws,
    interval_of,
    subtract,
)
from moe_benchmarks._statistics import (
    SHARE,
    Routing,
    Row,
    is_complete,
    losses,
    ranked_test_losses,
    share_size,
    top_share,
)


class Difference(NamedTuple):
    """A variant's loss less another's: negative where the first is better."""

    value: float
    low: float
    high: float
    chance: float  # probability of a difference as large if the two variants were the same
    num_pairs: int  # 0 where the trials were not paired

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    @property
    def is_apart(self) -> bool:
        """Whether the difference is more than chance, by the interval and by permutation.

        Both are asked because the bootstrap of a best trial is too narrow: on 10 trials of equal
        variants its interval excludes 0 in about 1 of 5 studies, on 30 in 1 of 10.
        """
        return self.excludes_zero and self.chance <= 1 - LEVEL


def are_paired(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether two variants ran the same trials: numbers, seeds and learning rates."""
    return sorted(map(_identity, rows)) == sorted(map(_identity, others))


def difference(
    rows: Sequence[Row],
    others: Sequence[Row],
    share: float = SHARE,
    *,
    routing: Routing = "trained",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two variants by the mean test loss of their top share.

    Every resample chooses its own top share, so the interval holds the luck of the choice.

    Parameters
    ----------
    rows, others : sequence of rows
        The trials of the two variants. If both ran the same trials they are resampled together.
    share : float
        Dimensionless, in (0, 1].
    routing : {"trained", "hard"}
        Routing at test.
    resamples, seed : int
        Resamples for the 95 % interval, and the seed of their generator.

    Returns
    -------
    Difference
        First less second, in the unit of the losses: negative where the first is better.
    """
    paired = are_paired(rows, others)
    if paired:
        rows, others = sorted(rows, key=_identity), sorted(others, key=_identity)
    drawn = draws(len(rows), resamples, seed)
    drawn_others = drawn if paired else draws(len(others), resamples, seed + 1)
    values = subtract(
        _resampled_share(rows, drawn, share, routing),
        _resampled_share(others, drawn_others, share, routing),
    )
    value = subtract(
        np.asarray(top_share(rows, share, routing=routing).mean),
        np.asarray(top_share(others, share, routing=routing).mean),
    )
    permuted = _permuted_differences(
        rows, others, share, routing=routing, paired=paired, resamples=resamples, seed=seed
    )
    chance = chance_of(float(value), permuted)
    return Difference(*interval_of(float(value), values), chance, len(rows) if paired else 0)


def paired_difference(
    rows: Sequence[Row],
    others: Sequence[Row],
    *,
    routing: Routing = "trained",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference | None:
    """Average the difference in test loss over the trials that both variants completed.

    Parameters
    ----------
    rows, others : sequence of rows
        Paired where number, seed and learning rate agree.
    routing : {"trained", "hard"}
        Routing at test.
    resamples, seed : int
        Resamples of the pairs for the 95 % interval, and the seed of their generator.

    Returns
    -------
    Difference or None
        First less second, in the unit of the losses; None where no pair is complete.
    """
    by_identity = {_identity(row): row for row in others if is_complete(row)}
    pairs = [
        (row, by_identity[_identity(row)])
        for row in rows
        if is_complete(row) and _identity(row) in by_identity
    ]
    if not pairs:
        return None
    first, second = (losses(side, "test", routing) for side in zip(*pairs, strict=True))
    gaps = first - second
    value = float(gaps.mean())
    means = gaps[draws(len(gaps), resamples, seed)].mean(axis=1)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(resamples, len(gaps)))
    chance = chance_of(value, (signs * gaps).mean(axis=1))
    return Difference(*interval_of(value, means), chance, len(gaps))


def _identity(row: Row) -> tuple[int, int, float]:
    settings = row["settings"]
    return int(row["trial"]), int(settings["seed"]), float(settings["learning_rate"])


def _resampled_share(
    rows: Sequence[Row], drawn: NDArray[np.int64], share: float, routing: Routing
) -> Floats:
    """Return the mean test loss of the top share of each resample, shape (resamples,)."""
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(losses(rows, "validation"), kind="stable")] = np.arange(len(rows))
    ranks = np.sort(rank[drawn], axis=1)
    num_complete = np.sum(ranks < sum(map(is_complete, rows)), axis=1)
    sizes = np.asarray([share_size(num, share) for num in range(len(rows) + 1)])[num_complete]
    chosen = np.arange(ranks.shape[1])[None, :] < sizes[:, None]
    tested = np.where(chosen, ranked_test_losses(rows, routing)[ranks], 0.0)
    return np.asarray(tested.sum(axis=1) / sizes, dtype=np.float64)


def _permuted_differences(
    rows: Sequence[Row],
    others: Sequence[Row],
    share: float,
    *,
    routing: Routing,
    paired: bool,
    resamples: int,
    seed: int,
) -> Floats:
    """Return the differences when chance says which variant a trial belongs to."""
    pooled = [*rows, *others]
    rng = np.random.default_rng(seed + 2)
    if paired:
        kept = rng.random((resamples, len(rows))) < 0.5
        mine = np.concatenate([kept, ~kept], axis=1)
    else:
        mine = rng.permuted(
            np.broadcast_to(np.arange(len(pooled)) < len(rows), (resamples, len(pooled))), axis=1
        )
    validation = losses(pooled, "validation")
    order = np.argsort(validation, kind="stable")
    mine, tested = mine[:, order], losses(pooled, "test", routing)[order]
    complete = np.isfinite(validation[order])
    sizes = np.asarray([share_size(num, share) for num in range(len(pooled) + 1)])

    def share_means(member: NDArray[np.bool_]) -> Floats:
        size = sizes[np.sum(member & complete, axis=1)]
        chosen = member & (np.cumsum(member, axis=1) <= size[:, None])
        total = np.where(chosen, tested, 0.0).sum(axis=1)
        return np.asarray(total / size, dtype=np.float64)

    return subtract(share_means(mine), share_means(~mine))
