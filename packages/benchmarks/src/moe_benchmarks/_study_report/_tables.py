"""Tables of a study."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from moe_benchmarks._bootstrap import Interval
from moe_benchmarks._statistics import Row, TopShare
from moe_benchmarks._study_report._compare import Ablation, Lead
from moe_benchmarks._study_report._document import Cell, Line, Table
from moe_benchmarks._study_report._findings import bounds, count, signed
from moe_benchmarks._study_report._names import Metric
from moe_benchmarks._study_report._study import Study, Variant

NONE = "n/a"


def variants_table(study: Study, trained: Lead | None, hard: Lead | None) -> Table:
    """Compare the variants by their top share."""
    header = [
        "gate and search",
        "trials complete",
        "failed",
        "validation loss ↓",
        "test loss ↓ as trained",
        "test loss ↓ hard",
        *(f"{task}, {metric.name} {metric.arrow}" for task, metric in study.metrics),
        "experts a row (hard)",
        "union over tasks (hard)",
        "dead experts (hard)",
        "seconds a trial",
    ]
    return Table(header, [_variant_line(study, each, trained, hard) for each in study.variants])


def _variant_line(study: Study, variant: Variant, trained: Lead | None, hard: Lead | None) -> Line:
    num_complete = len(variant.complete)
    counts = [str(num_complete), str(len(variant.rows) - num_complete)]
    first = [name_of(variant), *(linked(variant, variant.rows[:1], text) for text in counts)]
    if not num_complete:
        return Line([*first, *(Cell(NONE) for _ in range(7 + len(study.metrics)))])

    def cell(text: str, *, is_bold: bool = False) -> Cell:
        return linked(variant, variant.top.rows, text, is_bold=is_bold)

    def mean(value: Callable[[dict[str, Any]], float], routing: str) -> float:
        return fmean(value(row["metrics"]["test"][routing]) for row in variant.top.rows)

    def both(value: Callable[[dict[str, Any]], float], decimals: int) -> Cell:
        as_trained, as_hard = (f"{mean(value, r):.{decimals}f}" for r in ("trained", "hard"))
        return cell(f"{as_trained} ({as_hard})")

    validation = fmean(row["metrics"]["validation"]["trained"]["loss"] for row in variant.top.rows)
    return Line(
        [
            *first,
            cell(f"{validation:.{study.decimals}f}"),
            cell(_with_error(variant.top, study.decimals), is_bold=_wins(variant, trained)),
            cell(_with_error(variant.top_hard, study.decimals), is_bold=_wins(variant, hard)),
            *(
                both(_value(task, metric), _decimals(study, metric))
                for task, metric in study.metrics
            ),
            both(lambda test: float(test["experts_per_row"]), 2),
            both(lambda test: float(test["union_per_row"]), 2),
            both(lambda test: float(sum(test["dead_experts"])), 1),
            linked(variant, variant.complete, f"{_mean_seconds(variant):.3g}"),
        ]
    )


def ablation_table(study: Study, compared: Sequence[Ablation]) -> Table:
    """Compare each search with none."""
    header = [
        "gate and search",
        "verdict",
        "test loss ↓ top 5 % without",
        "with",
        "difference [95 %]",
        "chance",
        "difference [95 %], same trial",
        "pairs",
    ]
    lines = []
    for each in compared:
        variant, without, digits = each.variant, each.without, study.decimals
        paired = each.paired
        chance = f"{each.share.chance:.3f}" if each.share.chance >= 0.001 else "< 0.001"
        texts = [
            signed(each.share, digits),
            chance,
            signed(paired, digits) if paired else NONE,
            str(paired.num_pairs if paired else 0),
        ]
        verdict = "not apart"
        if each.share.is_apart:
            verdict = "lower with search" if each.share.value < 0 else "higher with search"
        cells = [
            name_of(variant),
            Cell(verdict, is_bold=each.share.is_apart),
            linked(without, without.top.rows, f"{without.top.mean:.{digits}f}"),
            linked(variant, variant.top.rows, f"{variant.top.mean:.{digits}f}"),
            *(linked(variant, variant.top.rows, text) for text in texts),
        ]
        lines.append(Line(cells))
    return Table(header, lines)


def speedup_table(study: Study, compared: Sequence[Ablation]) -> Table:
    """Count the trials needed to reach the best validation loss without search."""
    header = [
        "gate and search",
        "validation loss to reach",
        "trials without [95 %]",
        "trials with [95 %]",
        "times fewer [95 %]",
    ]
    lines = []
    for each in compared:
        found = each.speedup
        best, other = each.without.rows[:1], each.variant.rows[:1]
        cells = [
            name_of(each.variant),
            linked(each.without, best, f"{found.loss:.{study.decimals}f}"),
            linked(each.without, best, _counted(found.without)),
            linked(each.variant, other, _counted(found.searched)),
            linked(each.variant, other, _counted(found.ratio), is_bold=found.ratio.low > 1),
        ]
        lines.append(Line(cells))
    return Table(header, lines)


def name_of(variant: Variant) -> Cell:
    return Cell(variant.name, variant.anchor(variant.rows[0]))


def linked(variant: Variant, rows: Sequence[Row], text: str, *, is_bold: bool = False) -> Cell:
    """Link to the best of the rows behind a number; the others stand below it."""
    numbers = [str(row["trial"]) for row in rows]
    hint = f"trial{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
    return Cell(text, variant.anchor(rows[0]), hint, is_bold)


def _wins(variant: Variant, lead: Lead | None) -> bool:
    return lead is not None and lead.is_winner and lead.best is variant


def _with_error(top: TopShare, decimals: int) -> str:
    if top.standard_error is None:
        return f"{top.mean:.{decimals}f}"
    return f"{top.mean:.{decimals}f} ± {top.standard_error:.{decimals}f}"


def _value(task: str, metric: Metric) -> Callable[[dict[str, Any]], float]:
    return lambda test: metric.scale * float(test["tasks"][task].get(metric.key, math.nan))


def _decimals(study: Study, metric: Metric) -> int:
    return study.decimals if metric.decimals is None else metric.decimals


def _mean_seconds(variant: Variant) -> float:
    return fmean(row["seconds"] for row in variant.complete)


def _counted(interval: Interval) -> str:
    return f"{count(interval.value)} {bounds(interval)}"
