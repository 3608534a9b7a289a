"""Sentences that say no more than the intervals carry."""

import math
from collections.abc import Sequence

from moe_benchmarks._bootstrap import LEVEL, Interval
from moe_benchmarks._differences import Difference
from moe_benchmarks._study_report._compare import Ablation, Lead
from moe_benchmarks._study_report._names import gate_name
from moe_benchmarks._study_report._study import Study

FEW_TRIALS = 20  # of which the top 5 % is one trial
NAMED = 3  # variants named in a sentence; more are counted


def main_finding(study: Study, lead: Lead | None) -> str:
    """Say in one sentence which variant is best, or that none is."""
    if lead is None:
        return f"All {len(study.rows)} trials failed, so nothing was found."
    digits = study.decimals
    top = lead.best.top
    loss = f"a test loss of {top.mean:.{digits}f}"
    if not lead.behind:
        failed = " complete" if len(study.variants) > 1 else ""
        return f"{lead.best.name} has {loss}; there is no other{failed} variant to compare it with."
    few = _few_trials(study)
    if lead.is_winner:
        second, gap = lead.behind[0]
        return (
            f"{lead.best.name} has the lowest test loss, {top.mean:.{digits}f}, apart from every "
            f"other variant: the next, {second.name}, is {signed(gap, digits, plus=False)} "
            f"behind{few}."
        )
    close = [each.name for each in lead.close]
    which = "no variant" if len(close) == len(lead.behind) else "not every variant"
    return (
        f"No winner: {lead.best.name} has the lowest test loss here, {top.mean:.{digits}f}, but "
        f"{which} is apart from it; {listed(close)} could be as good{few}."
    )


def search_findings(study: Study, compared: Sequence[Ablation]) -> list[str]:
    """Say for each gate what its searches did to the test loss."""
    sentences = []
    for gate in study.by_gate():
        own = [each for each in compared if each.variant.gate == gate]
        if not own:
            continue
        apart = [each for each in own if each.share.is_apart]
        if not apart:
            searches = "the search" if len(own) == 1 else f"none of the {len(own)} searches"
            verb = "changes the test loss by no more" if len(own) == 1 else "changes it by more"
            sentences.append(f"{gate_name(gate)}: {searches} {verb} than chance does.")
        for each in apart:
            word = "lowers" if each.share.value < 0 else "raises"
            sentences.append(
                f"{each.variant.name} {word} the test loss of {gate_name(gate)}: difference "
                f"{signed(each.share, study.decimals)}."
            )
    if len(compared) > 1 and any(each.share.is_apart for each in compared):
        sentences.append(
            f"Of {len(compared)} comparisons without any effect, {len(compared) * (1 - LEVEL):.1f} "
            "would seem to have one on average."
        )
    return sentences


def speedup_findings(compared: Sequence[Ablation]) -> list[str]:
    """Say which searches need fewer trials; the paper claims up to 100 times for Hash and Top-k."""
    fewer = [each for each in compared if each.speedup.ratio.low > 1]
    if not fewer:
        return ["No search is shown to need fewer trials: every interval holds 1 or lies below it."]
    return [_fewer(each) for each in fewer]


def listed(names: Sequence[str]) -> str:
    """List a few names, and count the rest."""
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        shown.append(f"{len(names) - NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def signed(gap: Difference, decimals: int, *, plus: bool = True) -> str:
    """Write a difference with its interval."""
    sign = "+" if plus else ""
    low, value, high = (
        _infinite(number, f"{number:{sign}.{decimals}f}")
        for number in (gap.low, gap.value, gap.high)
    )
    return f"{value} [{low}, {high}]"


def count(number: float) -> str:
    """Write a number of trials, or a ratio of two."""
    if math.isinf(number):
        return "never"
    digits = 0 if number >= 10 or number == int(number) else 1 if number >= 1 else 2
    return f"{number:.{digits}f}"


def bounds(interval: Interval) -> str:
    """Write the interval alone."""
    return f"[{count(interval.low)}, {count(interval.high)}]"


def _fewer(each: Ablation) -> str:
    found = each.speedup
    # One trial with search is enough: more trials without it could show a larger ratio.
    is_bound = found.searched.value == 1
    bound = f", the most that {len(each.without.rows)} trials can show" if is_bound else ""
    return (
        f"{each.variant.name} needs {count(found.ratio.value)} times fewer trials than "
        f"{each.without.name} (95 % interval {bounds(found.ratio)}{bound})."
    )


def _infinite(number: float, text: str) -> str:
    return text.replace("inf", "∞") if math.isinf(number) else text


def _few_trials(study: Study) -> str:
    counts = [len(each.complete) for each in study.variants if each.complete]
    low, high = min(counts), max(counts)
    if low >= FEW_TRIALS:
        return ""
    trials = f"{low}" if low == high else f"{low} to {high}"
    noun = "trial" if high == 1 else "trials"
    return f" ({trials} {noun} a variant can show large differences only)"
