"""What the searches themselves found, step by step, on rows that they had not searched."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from moe_benchmarks._study_report._document import Cell, Line, Table
from moe_benchmarks._study_report._study import Study, Variant, percent

Step = dict[str, Any]


def search_steps_table(study: Study) -> Table | None:
    """Count the searches of each variant, and average what was gained; None if none searched."""
    header = [
        "gate and search",
        "searches",
        "accepted",
        "gain of the accepted, searched rows",
        "gain of the accepted, other rows",
        "of the loss",
        "positions or ids moved",
    ]
    lines = [
        Line(_cells(variant, steps, study.decimals))
        for variant in study.variants
        if (steps := [step for row in variant.complete for step in row["searches"]])
    ]
    return Table(header, lines) if lines else None


def search_steps_finding(study: Study) -> str:
    """Say how often the searches of all variants found something that other rows confirmed."""
    steps = [step for each in study.variants for row in each.complete for step in row["searches"]]
    accepted = sum(step["accepted"] for step in steps)
    return (
        f"Of {len(steps)} searches during training, {accepted} found what rows that were not "
        f"searched confirmed ({percent(accepted / len(steps))}); the others changed nothing."
    )


def _cells(variant: Variant, steps: Sequence[Step], digits: int) -> list[Cell]:
    accepted = [step for step in steps if step["accepted"]]
    first = variant.anchor(variant.rows[0])
    cells = [
        Cell(variant.name, first),
        Cell(str(len(steps)), first),
        Cell(f"{len(accepted)} ({percent(len(accepted) / len(steps))})", first),
    ]
    if not accepted:
        return [*cells, *(Cell("n/a") for _ in range(4))]
    searched = [step["cost_before"] - step["cost_after"] for step in accepted]
    gains = [step["gain"] for step in accepted]
    shares = [step["gain"] / step["cost_before"] for step in accepted if step["cost_before"]]
    texts = [
        _mean(searched, digits),
        _mean(gains, digits),
        percent(fmean(shares)) if shares else "n/a",
        f"{fmean(step['num_moved'] for step in accepted):.1f}",
    ]
    return [*cells, *(Cell(text, first) for text in texts)]


def _mean(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{fmean(values):.{digits}f} ± {stdev(values) / math.sqrt(len(values)):.{digits}f}"
