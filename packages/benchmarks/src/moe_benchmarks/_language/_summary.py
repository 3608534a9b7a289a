"""What the seeds of a study say of each way to route, and of their differences."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from moe_benchmarks._bootstrap import LEVEL
from moe_benchmarks._experiments._row import Row
from moe_benchmarks._language._students import DENSE_NAMES, STUDENTS, VARIANTS
from moe_benchmarks._language._tasks import TASKS


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval by Student's t; NaN where one seed bounds nothing."""

    value: float
    low: float
    high: float
    num_seeds: int

    def text(self, *, signed: bool = False) -> str:
        """Return both, scaled by 100 as GLUE's scores usually are."""
        # Plus 0, which makes a 0 of a rounded -0.
        mean, low, high = (
            f"{round(100 * value, 1) + 0.0:{'+' if signed else ''}.1f}"
            for value in (self.value, self.low, self.high)
        )
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Bound the mean of some seeds."""
    mean, size = float(np.mean(values)), len(values)
    if size < 2:
        return Estimate(mean, math.nan, math.nan, size)
    half = float(stats.t.ppf((1 + LEVEL) / 2, size - 1) * np.std(values, ddof=1) / math.sqrt(size))
    return Estimate(mean, mean - half, mean + half, size)


def variants(rows: Iterable[Row]) -> list[str]:
    """List the variants that have rows, the dense models first."""
    present = {row["variant"] for row in rows}
    return [each for each in VARIANTS if each in present]


def variant_name(variant: str) -> str:
    """Return a variant as people know it."""
    return DENSE_NAMES[variant] if variant in DENSE_NAMES else STUDENTS[variant].name


def main_scores(
    rows: Iterable[Row], variant: str, *, routing: str = "hard", name: str | None = None
) -> dict[int, float]:
    """Return the task's main score of each seed, or another of its scores."""
    return {
        row["seed"]: row["scores"][routing][name or TASKS[row["task"]].score_names[0]]
        for row in rows
        if row["variant"] == variant
    }


def paired_difference(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """Bound the mean difference of the seeds that both have; None without one."""
    both = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in both]) if both else None


def kept_share(first: dict[int, float], dense: dict[int, float]) -> float | None:
    """Return the mean score as a share of the dense model's on the same seeds."""
    both = first.keys() & dense.keys()
    whole = sum(dense[seed] for seed in both)
    return sum(first[seed] for seed in both) / whole if whole > 0 else None
