"""Comparisons of a study's variants, each made once for tables, figures and sentences."""

from dataclasses import dataclass

from moe_benchmarks._differences import Difference, difference, paired_difference
from moe_benchmarks._statistics import Routing, Speedup, speedup
from moe_benchmarks._study_report._study import Study, Variant


@dataclass(frozen=True)
class Lead:
    """The variant with the lowest test loss, and what the others are behind it."""

    best: Variant
    behind: list[tuple[Variant, Difference]]  # nearest first

    @property
    def close(self) -> list[Variant]:
        """Variants that cannot be told apart from the best."""
        return [variant for variant, gap in self.behind if not gap.is_apart]

    @property
    def is_winner(self) -> bool:
        """Whether the best is apart from every other."""
        return bool(self.behind) and not self.close


@dataclass(frozen=True)
class Ablation:
    """A search compared with none, for one gate."""

    variant: Variant
    without: Variant
    share: Difference  # of the top share
    paired: Difference | None  # over the trials that both completed
    speedup: Speedup


def lead(study: Study, routing: Routing) -> Lead | None:
    """Compare every variant with the best; None if no trial is complete."""
    tops = [
        ((each.top if routing == "trained" else each.top_hard).mean, each)
        for each in study.variants
        if each.complete
    ]
    if not tops:
        return None
    best = min(tops, key=lambda pair: pair[0])[1]
    return Lead(best, behind(study, best, routing))


def behind(study: Study, baseline: Variant, routing: Routing) -> list[tuple[Variant, Difference]]:
    """Compare every other variant that has a complete trial with one, best first."""
    others = [
        (each, difference(each.rows, baseline.rows, routing=routing))
        for each in study.variants
        if each is not baseline and each.complete
    ]
    return sorted(others, key=lambda pair: pair[1].value)


def ablations(study: Study) -> list[Ablation]:
    """Compare every search with none of the same gate, where both have a complete trial."""
    compared = []
    for variant in study.variants:
        without = study.without_search(variant.gate)
        if without is None or variant is without or not (variant.complete and without.complete):
            continue
        rows, others = variant.rows, without.rows
        compared.append(
            Ablation(
                variant,
                without,
                share=difference(rows, others),
                paired=paired_difference(rows, others),
                speedup=speedup(others, rows),
            )
        )
    return compared
