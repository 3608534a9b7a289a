"""What each search recovers of planted relabellings, and what it asks for; writes JSON.

A share of 1 is the whole gap between the start and the planted permutation, on rows that no
search has seen. Head evaluations are rows through the loss, in passes over all search rows.
"""

import argparse
import json
import platform
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy

from moe_localsearch import (
    RelabelingObjective,
    SearchResult,
    __version__,
    assign,
    assign_with_capacity,
    convergent_schedule,
    frank_wolfe,
    paper_schedule,
    relax,
    search,
)
from moe_localsearch.testing import PlantedProblem, planted_problem

RESULTS = Path(__file__).parent / "results"
SIZES = (16, 32, 64)
NUM_NONZERO = (1, 2, 4)
HEADS: tuple[Literal["squared", "cross_entropy"], ...] = ("squared", "cross_entropy")
ROWS_PER_POSITION = 256
UNSEEN_ROWS = 8192
PAPER_LEARNING_RATE = 1e-3  # the largest that the paper draws

METHODS: dict[str, Callable[[RelabelingObjective], SearchResult]] = {
    "search": search,
    "search, no gradient": search,
    "frank_wolfe, 1 round": partial(frank_wolfe, max_rounds=1),
    "frank_wolfe": frank_wolfe,
    **{
        f"relax, convergent, {steps} steps": partial(
            relax, schedule=convergent_schedule, num_steps=steps
        )
        for steps in (10, 30, 100, 300)
    },
    "relax, as published, 100 steps": partial(
        relax, schedule=paper_schedule, num_steps=100, learning_rate=PAPER_LEARNING_RATE
    ),
}


class Head:
    """The loss of a problem, and how many rows have been through it."""

    def __init__(self, problem: PlantedProblem) -> None:
        self.problem = problem
        self.num_rows = 0

    def loss(self, mixed: Any, rows: Any) -> Any:  # noqa: ANN401  arrays of NumPy
        """Count and return the losses."""
        self.num_rows += len(rows)
        return self.problem.row_loss(mixed, rows)

    def objective(self, num_rows: int, *, gradient: bool) -> RelabelingObjective:
        """Return the objective on the first rows."""
        return RelabelingObjective(
            self.problem.slot_weights[:num_rows],
            self.problem.outputs[:num_rows],
            self.loss,
            row_gradient=self.problem.row_loss.gradient if gradient else None,
        )


def measure(problem: PlantedProblem, num_rows: int, name: str) -> dict[str, float]:
    """Run one method on the first rows, and look at what it found on the others."""
    size = len(problem.permutation)
    head = Head(problem)
    objective = head.objective(num_rows, gradient="no gradient" not in name)
    began = time.perf_counter()
    result = METHODS[name](objective)
    seconds = time.perf_counter() - began
    num_asked = head.num_rows
    unseen = problem.objective.on_rows(np.arange(num_rows, len(problem.outputs)))
    start, found, planted = unseen(
        np.stack([np.arange(size), result.permutation, problem.permutation])
    )
    return {
        "share": (start - found) / (start - planted),
        "head_evaluations": num_asked / num_rows,
        "seconds": seconds,
    }


def summary(runs: list[dict[str, float]]) -> dict[str, float]:
    """Summarise the seeds of one setting and method."""
    shares, asked, seconds = (
        [run[key] for run in runs] for key in ("share", "head_evaluations", "seconds")
    )
    return {
        "median_share": round(float(np.median(shares)), 4),
        "worst_share": round(min(shares), 4),
        "head_evaluations": round(float(np.median(asked)), 1),
        "seconds": round(float(np.median(seconds)), 3),
    }


def planted_table(num_seeds: int) -> list[dict[str, Any]]:
    """Run every method on every setting and seed."""
    table = []
    for size, num_nonzero, head in product(SIZES, NUM_NONZERO, HEADS):
        num_rows = ROWS_PER_POSITION * size
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
        for seed in range(num_seeds):
            problem = planted_problem(
                num_rows=num_rows + UNSEEN_ROWS,
                size=size,
                num_nonzero=num_nonzero,
                head=head,
                seed=seed,
            )
            for name in METHODS:
                runs[name].append(measure(problem, num_rows, name))
        row = {"positions": size, "nonzero": num_nonzero, "head": head, "rows": num_rows}
        table.append(row | {name: summary(each) for name, each in runs.items()})
        print(json.dumps(table[-1]), flush=True)
    return table


def separable_seconds() -> dict[str, float]:
    """Time one expert a row, 256 experts and 100,000 rows, and its assignment alone."""
    problem = planted_problem(num_rows=100_000, size=256, num_nonzero=1, num_outputs=1, seed=0)
    objective = problem.objective
    costs = objective.replacement_costs(np.arange(256))
    began = time.perf_counter()
    assign(costs)
    assigned = time.perf_counter()
    search(objective)
    return {"assign": assigned - began, "search": time.perf_counter() - assigned}


def capacity_seconds() -> dict[str, dict[str, float]]:
    """Time 100,000 ids and 64 experts of equal capacity on costs of several kinds."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(100_000, 64))
    kinds = {
        "independent": normal,
        "some experts better": normal + np.linspace(0, 3, 64),
        "a few frequent ids": normal * rng.pareto(1.2, size=(100_000, 1)),
        "6 of 10 ids unseen": normal * (rng.random((100_000, 1)) > 0.6),
        "whole numbers": np.round(normal),
    }
    measured = {}
    for kind, costs in kinds.items():
        began = time.perf_counter()
        answer = assign_with_capacity(costs, capacity=-(-100_000 // 64))
        seconds = time.perf_counter() - began
        measured[kind] = {"seconds": seconds, "relative_gap": answer.gap / abs(answer.cost)}
    return measured


def peak_memory() -> dict[str, float]:
    """Trace the memory of a search over 64 experts and 65,536 rows, inputs apart."""
    problem = planted_problem(num_rows=65_536, size=64, num_nonzero=4, seed=0)
    objective = problem.objective
    tracemalloc.start()
    search(objective)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    inputs = problem.slot_weights.nbytes + problem.outputs.nbytes
    return {"inputs_megabytes": inputs / 1e6, "peak_megabytes_beyond": peak / 1e6}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="problems of each setting")
    # `nox -s bench` hands all of its options to each script; the others are not for this one.
    options, _ = parser.parse_known_args()
    results = {
        "device": f"cpu ({platform.machine()})",
        "versions": {
            "moe-localsearch": __version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
        "separable_seconds": separable_seconds(),
        "capacity": capacity_seconds(),
        "memory": peak_memory(),
        "num_seeds": options.seeds,
        "planted": planted_table(options.seeds),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "planted_cpu.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
