"""From the results of every trained model to what the report compares."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_benchmarks._gates import COMET, COMET_PLUS, COMET_SEARCHED, REPORTED_GATES

Result = dict[str, Any]


class Mean(NamedTuple):
    """A mean over seeds and its standard error, which is 0 for one seed."""

    value: float
    standard_error: float


def mean_of(values: Sequence[float]) -> Mean:
    """Average over seeds."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Mean(statistics.fmean(values), error)


def reported_results(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results by reported gate, one a seed.

    COMET+ is, for each seed, COMET or its searched branch, whichever has the lower validation
    loss: the validation split chooses, as it chooses the epoch.
    """
    by_gate: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: int(result["seed"])):
        by_gate.setdefault(result["gate"], []).append(result)
    plus = []
    for plain, searched in zip(by_gate[COMET.name], by_gate[COMET_SEARCHED.name], strict=True):
        assert plain["seed"] == searched["seed"]
        kept = searched if validation_loss(searched) < validation_loss(plain) else plain
        plus.append({**kept, "searches": searched["searches"]})
    by_gate[COMET_PLUS] = plus
    return {name: by_gate[name] for name in REPORTED_GATES}


def validation_loss(result: Result) -> float:
    """Loss on the validation split with hard routing, in nats: what every choice is made by."""
    return float(result["metrics"]["validation_hard"]["loss"])


def title(result: Result) -> str:
    """Name a model as the report does."""
    gate = COMET_PLUS if result["gate"] == COMET_SEARCHED.name else result["gate"]
    return f"{gate}, seed {result['seed']}"


def best_to_serve(reported: dict[str, list[Result]]) -> Result:
    """Choose the model to export: the lowest validation loss."""
    every = [result for results in reported.values() for result in results]
    return min(every, key=validation_loss)


def comet_to_draw(reported: dict[str, list[Result]], served: Result) -> Result:
    """Choose the COMET gate whose trees are drawn: the served one if it is COMET."""
    if served["trees"]:
        return served
    return min(reported[COMET_PLUS], key=validation_loss)
