"""Rows grouped to studies and their variants."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moe_benchmarks._statistics import Row, TopShare, is_complete, top_share
from moe_benchmarks._study_report._names import (
    ACCURACY,
    AUC,
    NO_SEARCH,
    SQUARED_ERROR,
    Metric,
    order,
    variant_name,
)

SIGNIFICANT_DIGITS = 4  # of losses; trials differ in the third


@dataclass(frozen=True)
class Variant:
    """The trials of a gate with one search, best first and failed last."""

    gate: str
    search: str
    rows: list[Row]
    slug: str

    @property
    def name(self) -> str:
        """The name in tables."""
        return variant_name(self.gate, self.search)

    @property
    def complete(self) -> list[Row]:
        """The trials that ended well."""
        return [row for row in self.rows if is_complete(row)]

    @property
    def best(self) -> Row | None:
        """The trial with the lowest validation loss."""
        return self.rows[0] if is_complete(self.rows[0]) else None

    @cached_property
    def top(self) -> TopShare:
        """The top share by validation loss, test loss as trained."""
        return top_share(self.rows)

    @cached_property
    def top_hard(self) -> TopShare:
        """The same trials, test loss with hard routing."""
        return top_share(self.rows, routing="hard")

    def anchor(self, row: Row) -> str:
        """Return the id of a trial's line in the appendix."""
        return f"row-{self.slug}-{row['trial']}"


@dataclass(frozen=True)
class Study:
    """Rows that may be compared: one experiment on one share of the data, one weighting."""

    title: str
    slug: str
    experiment: str
    fraction: float
    variants: list[Variant]

    @property
    def rows(self) -> list[Row]:
        """All trials."""
        return [row for variant in self.variants for row in variant.rows]

    @cached_property
    def metrics(self) -> list[tuple[str, Metric]]:
        """Tasks and the metric that each is reported by; empty if no trial is complete."""
        for row in self.rows:
            if is_complete(row):
                tasks = row["metrics"]["test"]["trained"]["tasks"]
                return [(task, _metric(values)) for task, values in tasks.items()]
        return []

    @cached_property
    def decimals(self) -> int:
        """Decimals that losses are shown with."""
        means = [abs(each.top.mean) for each in self.variants if math.isfinite(each.top.mean)]
        size = max(means, default=1.0)
        return max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(size))) if size else 4

    def by_gate(self) -> dict[str, list[Variant]]:
        """Group the variants by gate."""
        groups: dict[str, list[Variant]] = {}
        for variant in self.variants:
            groups.setdefault(variant.gate, []).append(variant)
        return groups

    def without_search(self, gate: str) -> Variant | None:
        """Return a gate's variant that searches of the same gate are compared with."""
        same = (each for each in self.variants if (each.gate, each.search) == (gate, NO_SEARCH))
        return next(same, None)


def studies(rows: Sequence[Row]) -> list[Study]:
    """Group rows by what makes their losses comparable; refuse a trial that appears twice."""
    groups: dict[tuple[str, float, tuple[float, ...]], list[Row]] = {}
    for row in rows:
        weights = tuple(row["settings"].get("task_weights") or ())
        groups.setdefault((row["experiment"], float(row["fraction"]), weights), []).append(row)
    several_weights = {
        key[:2] for key in groups if sum(other[:2] == key[:2] for other in groups) > 1
    }
    grouped = []
    for key in sorted(groups):
        experiment, fraction, weights = key
        title = f"{experiment}, {percent(fraction)} of the data"
        slug = _slug(f"{experiment}-{fraction:g}")
        if key[:2] in several_weights:
            listed = [f"{weight:g}" for weight in weights]
            title += f", task weights {', '.join(listed)}"
            slug = _slug(f"{slug}-{'-'.join(listed)}")
        grouped.append(Study(title, slug, experiment, fraction, _variants(groups[key], slug)))
    return grouped


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.3g} %"


def _variants(rows: list[Row], study_slug: str) -> list[Variant]:
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        trials = groups.setdefault((row["gate"], row["search"]), {})
        if row["trial"] in trials:
            msg = (
                f"`rows` must hold each trial once, got trial {row['trial']} of "
                f"{row['experiment']}, {row['gate']}, {row['search']} again."
            )
            raise ValueError(msg)
        trials[row["trial"]] = row
    return [
        Variant(
            gate,
            search,
            sorted(groups[gate, search].values(), key=_rank),
            f"{study_slug}-{_slug(gate)}-{_slug(search)}",
        )
        for gate, search in sorted(groups, key=lambda key: order(*key))
    ]


def _rank(row: Row) -> tuple[float, int]:
    loss = row["metrics"]["validation"]["trained"]["loss"] if is_complete(row) else math.inf
    return float(loss), int(row["trial"])


def _metric(values: dict[str, Any]) -> Metric:
    for metric in (AUC, ACCURACY):
        if metric.key in values:
            return metric
    return SQUARED_ERROR


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
