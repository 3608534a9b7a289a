"""What the trials of a variant say: top share, best of N, trials needed, each bounded.

A row is one trial as `rows.jsonl` holds it. A trial that failed counts as one with an infinite
loss. Losses are the weighted sums over the tasks that the trials minimise: in nats for
classification, in squared units of the target for regression.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_benchmarks._bootstrap import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    divide,
    draws,
    interval_of,
    median_trials,
    quantiles,
)

Row = Mapping[str, Any]
Routing = Literal["trained", "hard"]

SHARE = 0.05  # of the trials, the paper's
BAND = 0.90  # of the band around best-of-N curves


class TopShare(NamedTuple):
    """The best trials of a variant by validation loss, and their mean test loss."""

    rows: list[Row]  # best first
    num_complete: int
    mean: float  # infinite if no trial is complete
    standard_error: float | None  # over the trials of the share; None for fewer than 2


class BestOf(NamedTuple):
    """Test loss of the trial with the best validation loss among N, for N = 1..n."""

    num_trials: NDArray[np.int64]  # (n,)
    median: Floats  # (n,), infinite where at least half of the draws hold failed trials alone
    low: Floats  # (n,)
    high: Floats  # (n,)


class Speedup(NamedTuple):
    """Trials needed without and with search to reach one loss."""

    loss: float  # validation loss that the variant without search reaches with all its trials
    without: Interval
    searched: Interval
    ratio: Interval  # without over searched; 0 where the search never reaches the loss


def is_complete(row: Row) -> bool:
    """Whether a trial ended with a finite validation and test loss."""
    return row["state"] == "complete" and all(
        math.isfinite(row["metrics"][split]["trained"]["loss"]) for split in ("validation", "test")
    )


def losses(rows: Sequence[Row], split: str, routing: Routing = "trained") -> Floats:
    """Return each trial's loss on a split, shape (n,); infinite for a failed trial."""
    values = [
        row["metrics"][split][routing]["loss"] if is_complete(row) else math.inf for row in rows
    ]
    return np.asarray(values, dtype=np.float64)


def share_size(num_complete: int, share: float = SHARE) -> int:
    """Return how many trials a share is: rounded up, and at least 1."""
    if not 0 < share <= 1:
        msg = f"`share` must be in (0, 1], got {share}."
        raise ValueError(msg)
    # 0.05 * 140 is a little more than 7 in floating point.
    return max(1, math.ceil(round(share * num_complete, 9)))


def top_share(
    rows: Sequence[Row], share: float = SHARE, *, routing: Routing = "trained"
) -> TopShare:
    """Average the test loss of the best share of the complete trials by validation loss.

    Parameters
    ----------
    rows : sequence of rows
        The trials of one variant.
    share : float
        Dimensionless, in (0, 1]. A share is rounded up to whole trials, at least 1.
    routing : {"trained", "hard"}
        Routing at test; the validation loss that chooses is always as trained.

    Returns
    -------
    TopShare
        Ties keep the order of the rows.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824: the top 5 % of 500 trials.
    """
    complete = [row for row in rows if is_complete(row)]
    order = np.argsort(losses(complete, "validation"), kind="stable")
    chosen = [complete[i] for i in order[: share_size(len(complete), share)]]
    tested = losses(chosen, "test", routing)
    error = float(tested.std(ddof=1) / math.sqrt(len(tested))) if len(tested) > 1 else None
    return TopShare(chosen, len(complete), float(tested.mean()) if chosen else math.inf, error)


def best_of(
    rows: Sequence[Row],
    *,
    routing: Routing = "trained",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> BestOf:
    """Bootstrap the test loss of the trial with the best validation loss among N.

    Parameters
    ----------
    rows : sequence of rows
        The n trials of one variant, at least one.
    routing : {"trained", "hard"}
        Routing at test.
    resamples, seed : int
        Draws of n trials with replacement, and the seed of their generator. The first N of a
        draw are a draw of N.

    Returns
    -------
    BestOf
        Median and central 90 % of the draws for N = 1..n, in the unit of the losses.

    References
    ----------
    Dodge et al., Show Your Work, EMNLP 2019, arXiv:1909.03004, section 3.1.
    """
    ranked = ranked_test_losses(rows, routing)
    best = np.minimum.accumulate(draws(len(rows), resamples, seed), axis=1)
    low, median, high = quantiles(ranked[best], ((1 - BAND) / 2, 0.5, (1 + BAND) / 2))
    return BestOf(np.arange(1, len(rows) + 1), median, low, high)


def trials_needed(
    rows: Sequence[Row], loss: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Count the trials after which the best validation loss is at most `loss` in the median.

    The median is used because a failed trial has an infinite loss, with which a mean says nothing.

    Parameters
    ----------
    rows : sequence of rows
        The trials of one variant.
    loss : float
        Validation loss to reach, as trained.
    resamples, seed : int
        Resamples of the trials for the interval, and the seed of their generator.

    Returns
    -------
    Interval
        The smallest N for which N draws with replacement hold a trial that reaches the loss with
        probability 1/2 or more, infinite where no trial reaches it, with its 95 % interval. Where
        none or all reach it, which no resample changes, the interval's end is the binomial one.
    """
    reached = losses(rows, "validation") <= loss
    resampled = reached[draws(len(rows), resamples, seed)].mean(axis=1)
    found = interval_of(float(median_trials(reached.mean())), median_trials(resampled))
    # Resamples of none are none: these ends are Clopper and Pearson's.
    unlikely = ((1 - LEVEL) / 2) ** (1 / len(rows))
    if not reached.any():
        return found._replace(low=float(median_trials(1 - unlikely)))
    if reached.all():
        return found._replace(high=float(median_trials(unlikely)))
    return found


def speedup(
    without: Sequence[Row], searched: Sequence[Row], *, resamples: int = RESAMPLES, seed: int = 0
) -> Speedup:
    """Compare the trials needed without and with search to reach the same validation loss.

    Parameters
    ----------
    without, searched : sequence of rows
        The trials of a gate without and with search. The loss to reach is the best of the trials
        without search; a resample takes the best of its own trials.
    resamples, seed : int
        Resamples for the intervals, and the seed of their generator.

    Returns
    -------
    Speedup
        The ratio is dimensionless: above 1, the search needs fewer trials. Between equal variants
        its interval lies above 1 in about 1 of 100 studies. It does not show a search to be slower:
        the loss to reach is the best of those without search, which is lucky, and where no trial
        with search reaches it the upper end, which is the binomial one, is above 1 too.

    Raises
    ------
    ValueError
        If no trial without search is complete.

    References
    ----------
    Ibrahim et al., KDD 2023, arXiv:2306.02824, claim up to 100 for Hash and Top-k.
    """
    base, other = losses(without, "validation"), losses(searched, "validation")
    loss = float(base.min(initial=math.inf))
    if not math.isfinite(loss):
        msg = "`without` must hold a complete trial: there is no loss to reach."
        raise ValueError(msg)
    drawn = base[draws(len(base), resamples, seed)]
    to_reach = drawn.min(axis=1, keepdims=True)
    drawn_other = other[draws(len(other), resamples, seed + 1)]
    finite = np.isfinite(to_reach[:, 0])
    ratios = divide(
        median_trials((drawn <= to_reach).mean(axis=1)),
        median_trials((drawn_other <= to_reach).mean(axis=1)),
    )[finite]
    needed = trials_needed(without, loss, resamples=resamples, seed=seed)
    needed_other = trials_needed(searched, loss, resamples=resamples, seed=seed + 1)
    first = np.asarray(needed.value)
    # Fewest trials with search are the most times fewer.
    value, most, least = (float(divide(first, np.asarray(end))) for end in needed_other)
    ratio = interval_of(value, ratios)
    if math.isinf(needed_other.value):
        ratio = ratio._replace(high=max(ratio.high, most))
    elif (other <= loss).all():
        ratio = ratio._replace(low=min(ratio.low, least))
    return Speedup(loss, needed, needed_other, ratio)


def ranked_test_losses(rows: Sequence[Row], routing: Routing) -> Floats:
    """Return the test losses in the order of the validation losses."""
    order = np.argsort(losses(rows, "validation"), kind="stable")
    return np.asarray(losses(rows, "test", routing)[order], dtype=np.float64)
