"""Tables of a study."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from moe_benchmarks._bootstrap import Interval
from moe_benchmarks._statistics import Row, TopShare, is_complete
from moe_benchmarks._study_report._compare import Ablation, Lead
from moe_benchmarks._study_report._document import Cell, Line, Table
from moe_benchmarks._study_report._findings import bounds, count, signed
from moe_benchmarks._study_report._names import Metric
from moe_benchmarks._study_report._study import Study, Variant

NONE = "n/a"
# Shown for every trial, whether they vary or not.
ALWAYS = ("seed", "learning_rate")


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
    first = [_name(variant), *(_linked(variant, variant.rows[:1], text) for text in counts)]
    if not num_complete:
        return Line([*first, *(Cell(NONE) for _ in range(7 + len(study.metrics)))])

    def cell(text: str, *, is_bold: bool = False) -> Cell:
        return _linked(variant, variant.top.rows, text, is_bold=is_bold)

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
            _linked(variant, variant.complete, f"{_mean_seconds(variant):.3g}"),
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
            _name(variant),
            Cell(verdict, is_bold=each.share.is_apart),
            _linked(without, without.top.rows, f"{without.top.mean:.{digits}f}"),
            _linked(variant, variant.top.rows, f"{variant.top.mean:.{digits}f}"),
            *(_linked(variant, variant.top.rows, text) for text in texts),
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
            _name(each.variant),
            _linked(each.without, best, f"{found.loss:.{study.decimals}f}"),
            _linked(each.without, best, _counted(found.without)),
            _linked(each.variant, other, _counted(found.searched)),
            _linked(each.variant, other, _counted(found.ratio), is_bold=found.ratio.low > 1),
        ]
        lines.append(Line(cells))
    return Table(header, lines)


def settings_table(study: Study) -> Table:
    """List the settings of each variant's best trial."""
    names = _varying(study.rows)
    lines = [
        Line(
            [
                _name(variant),
                *(
                    _linked(variant, [variant.best], text)
                    for text in (
                        str(variant.best["trial"]),
                        f"{variant.best['best_epoch'] + 1} of {len(variant.best['history'])}",
                        *(_setting(variant.best["settings"].get(name)) for name in names),
                    )
                ),
            ]
        )
        for variant in study.variants
        if variant.best is not None
    ]
    return Table(["gate and search", "trial", "best epoch", *map(_words, names)], lines)


def trials_table(study: Study, environments: Sequence[tuple[Any, ...]]) -> Table:
    """List every trial, best first within its variant; those of the top share are marked."""
    names = _varying(study.rows)
    header = [
        "gate and search",
        "trial",
        "state",
        "validation loss",
        "test loss",
        "test loss, hard",
        "best epoch",
        "seconds",
        *map(_words, names),
        "commit",
        "made with",
        "error",
    ]
    lines = []
    for variant in study.variants:
        top = {row["trial"] for row in variant.top.rows}
        for row in variant.rows:
            cells = [
                Cell(variant.name),
                Cell(str(row["trial"])),
                Cell("complete" if is_complete(row) else "failed"),
                *(Cell(text) for text in _results(row, study.decimals)),
                *(Cell(_setting(row["settings"].get(name))) for name in names),
                Cell(row.get("commit") or NONE),
                Cell(
                    letter(place := environments.index(environment(row))), environment_anchor(place)
                ),
                Cell(row.get("error") or "", is_text=True),
            ]
            lines.append(Line(cells, variant.anchor(row), row["trial"] in top))
    return Table(header, lines)


def environment(row: Row) -> tuple[Any, ...]:
    """Return what a trial was made with: versions, device and machine."""
    versions = tuple(sorted((row.get("versions") or {}).items()))
    return versions, row.get("device") or "", row.get("machine") or ""


def environment_anchor(place: int) -> str:
    """Return the id of what trials were made with."""
    return f"made-with-{place + 1}"


def letter(place: int) -> str:
    """Name what trials were made with."""
    return f"set {place + 1}"


def common_settings(study: Study) -> list[str]:
    """Write the settings that all trials share."""
    varying = _varying(study.rows)
    settings = study.rows[0]["settings"]
    return [
        f"{_words(name)} {_setting(settings[name])}" for name in settings if name not in varying
    ]


def _varying(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys([*ALWAYS, *(name for row in rows for name in row["settings"])])
    return [
        name
        for name in names
        if name in ALWAYS
        or any(row["settings"].get(name) != rows[0]["settings"].get(name) for row in rows)
    ]


def _results(row: Row, decimals: int) -> list[str]:
    if not is_complete(row):
        return [NONE] * 5
    metrics = row["metrics"]
    values = [
        metrics["validation"]["trained"]["loss"],
        metrics["test"]["trained"]["loss"],
        metrics["test"]["hard"]["loss"],
    ]
    epoch = f"{row['best_epoch'] + 1} of {len(row['history'])}"
    return [*(f"{value:.{decimals}f}" for value in values), epoch, f"{row['seconds']:.3g}"]


def _name(variant: Variant) -> Cell:
    return Cell(variant.name, variant.anchor(variant.rows[0]))


def _linked(variant: Variant, rows: Sequence[Row], text: str, *, is_bold: bool = False) -> Cell:
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


def _words(name: str) -> str:
    return name.replace("num_", "number of ").replace("_", " ")


def _setting(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return str(value)
