"""Studies of seconds: what they are made of, and how they are run in this process."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from _synthetic import ratings

from moe_benchmarks._data._dataset import Dataset
from moe_benchmarks._tune._plan import StudyPlan
from moe_benchmarks._tune._storage import hold_study, open_study, write_rows
from moe_benchmarks._tune._worker import work

Row = dict[str, object]
PLAN = StudyPlan(
    experiment="movielens-1m", gates=("hash", "top-k"), searches=("identity", "ids"), trials=2,
    epochs=1,
)  # fmt: skip
few_ratings = partial(ratings, 40, num_users=5, num_items=5)


def run_here(
    folder: Path,
    plan: StudyPlan,
    url: str | None = None,
    data: Callable[[], Dataset] = few_ratings,
    stack: int = 1,
) -> list[Row]:
    with hold_study(folder, plan) as held:
        storage = open_study(folder, held, url)
        work(storage, held, data, stack=stack)
        return write_rows(storage, held, folder)


def numbers(rows: list[Row]) -> list[tuple[object, ...]]:
    return [(row["gate"], row["search"], row["trial"]) for row in rows]


def wanted(plan: StudyPlan) -> list[tuple[object, ...]]:
    return [(*variant, trial) for variant in plan.variants for trial in range(plan.trials)]
