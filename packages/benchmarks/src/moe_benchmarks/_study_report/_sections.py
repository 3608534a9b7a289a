"""A study's sections."""

from collections.abc import Sequence

from moe_benchmarks._statistics import SHARE, share_size
from moe_benchmarks._study_report import _figures, _tables, _trials
from moe_benchmarks._study_report._compare import Ablation, Lead, ablations, lead
from moe_benchmarks._study_report._document import Figure, Section
from moe_benchmarks._study_report._findings import (
    listed,
    main_finding,
    search_findings,
    speedup_findings,
)
from moe_benchmarks._study_report._made_with import Environment
from moe_benchmarks._study_report._names import gate_name
from moe_benchmarks._study_report._search_steps import search_steps_finding, search_steps_table
from moe_benchmarks._study_report._study import Study, percent

PAPER_TRIALS = 500  # a gate and data set, Ibrahim et al., KDD 2023
TABLE_NOTE = (
    "Means over the best {share} of the complete trials by validation loss as trained "
    "({sizes}); ± is their standard error, which needs 2 trials. In brackets: with hard "
    "routing. ↓ lower is better, ↑ higher is better. Dead experts: used by no test row, summed "
    "over the tasks. Seconds are those of all complete trials. Bold only where a difference to "
    "every other variant is more than chance: its 95 % interval excludes 0, and so does a "
    "permutation of the trials at 5 %. Numbers link to the best trial behind them in the list "
    "of trials."
)
ABLATION_NOTE = (
    "Difference in test loss to the same gate without search, negative where the search is "
    "better, with a 95 % bootstrap interval in which every resample chooses its own top 5 %. "
    "Chance: share of random exchanges of the two variants' trials that differ as much. Same "
    "trial: mean over all pairs of complete trials with the same number, seed and learning "
    "rate. Each line stands for itself: of 20 without any effect, one may seem to have one."
)
SPEEDUP_NOTE = (
    "Trials after which the best validation loss is, in the median, at most the best that the "
    "gate reaches without search with all its trials; a failed trial has an infinite loss. "
    "Never: no trial reaches it. The ratio's interval resamples the trials of both. That loss "
    "is a lucky one, so a ratio below 1 is weak evidence; one above 1 (bold where the interval "
    "is) counts. Trials without search bound the ratio: n of them cannot show more than 0.7 n."
)

STEPS_NOTE = (
    "Searches of all complete trials. One is accepted if its gain on training rows that it has "
    "not searched is at least two standard errors; what it found for the searched rows is "
    "larger because it was chosen there. Gains are in the loss of the task, times its weight; ± "
    "is the standard error of the mean over searches. The paper's search is learned with the "
    "weights, and has no such steps."
)
EDGE_NOTE = (
    "Edge: at an end of the range that was searched (of a learning rate, within 5 % of its "
    "logarithm), so better settings may lie beyond."
)


def study_sections(study: Study, environments: Sequence[Environment]) -> list[Section]:
    """Return the sections of a study, the first with what was found."""
    trained, hard = lead(study, "trained"), lead(study, "hard")
    compared = ablations(study)
    sections = [
        Section(study.title, study.slug, 2, [main_finding(study, trained)]),
        _variants(study, trained, hard),
    ]
    if trained is not None:
        sections += [_curves(study), *_searches(study, compared), *_steps(study), _inside(study)]
        sections.append(_settings(study))
    return [*sections, _made(study), _list(study, environments)]


def _variants(study: Study, trained: Lead | None, hard: Lead | None) -> Section:
    sizes = sorted({share_size(len(each.complete)) for each in study.variants if each.complete})
    trials = " to ".join(dict.fromkeys(f"{size}" for size in (sizes[:1] + sizes[-1:])))
    note = TABLE_NOTE.format(
        share=percent(SHARE), sizes=f"{trials or 0} trial{'' if sizes == [1] else 's'} a variant"
    )
    table = _tables.variants_table(study, trained, hard)
    return Section("Gates and searches", table=table, note=note)


def _curves(study: Study) -> Section:
    caption = (
        "Test loss of the trial with the best validation loss among N drawn with replacement: "
        "median, and the middle 90 % of the draws. Failed trials count as infinite."
    )
    figure = Figure(_figures.best_of_curves(study), caption, is_wide=_has_panels(study))
    return Section("What more trials bring", figures=[figure])


def _searches(study: Study, compared: Sequence[Ablation]) -> list[Section]:
    if not compared:
        text = "No gate has complete trials both with and without a search, so none was compared."
        return [Section("What the searches change", paragraphs=[text])]
    gap_caption = "Difference to no search in mean test loss of the top 5 %, with 95 % interval."
    ratio_caption = (
        "Times fewer trials with search, with 95 % interval; an arrow leads beyond the axis, and "
        "a line without a dot has its estimate there. Dotted: the most that the paper claims, 100."
    )
    return [
        Section(
            "What the searches change",
            paragraphs=[" ".join(search_findings(study, compared))],
            table=_tables.ablation_table(study, compared),
            note=ABLATION_NOTE,
            figures=[Figure(_figures.ablation_intervals(study, compared), gap_caption)],
        ),
        Section(
            "Trials needed",
            paragraphs=[" ".join(speedup_findings(compared))],
            table=_tables.speedup_table(study, compared),
            note=SPEEDUP_NOTE,
            figures=[Figure(_figures.speedup_intervals(study, compared), ratio_caption)],
        ),
    ]


def _steps(study: Study) -> list[Section]:
    table = search_steps_table(study)
    if table is None:
        return []
    text = search_steps_finding(study)
    return [Section("What each search found", paragraphs=[text], table=table, note=STEPS_NOTE)]


def _inside(study: Study) -> Section:
    tasks = [task for task, _ in study.metrics]
    experts = Figure(
        _figures.experts_over_epochs(study),
        "Experts a row over the epochs, as trained, in the best trial of each variant.",
        is_wide=_has_panels(study),
    )
    loads = [
        Figure(_figures.load(each, tasks), f"{each.name}, trial {each.best['trial']}.")
        for each in study.variants
        if each.best is not None
    ]
    text = (
        "Experts used over training, and the share of the test rows that uses each expert with "
        "hard routing, a line for each task, in the best trials by validation loss."
    )
    return Section("Experts in use", paragraphs=[text], figures=[experts, *loads])


def _settings(study: Study) -> Section:
    ended = _trials.epochs_finding(study)
    return Section(
        "Settings of the best trials",
        paragraphs=[ended] if ended else [],
        table=_trials.settings_table(study),
        note=EDGE_NOTE,
    )


def _has_panels(study: Study) -> bool:
    """Whether a figure of a panel for each gate fills the page."""
    return len({each.gate for each in study.variants if each.complete}) > 2


def _made(study: Study) -> Section:
    counts = [len(each.rows) for each in study.variants]
    low, high = min(counts), max(counts)
    trials = f"{low}" if low == high else f"{low} to {high}"
    commits = sorted({row.get("commit") or "unknown" for row in study.rows})
    devices = sorted({row.get("device") or "unknown" for row in study.rows})
    epochs = sorted({row["settings"].get("epochs") for row in study.rows} - {None})
    most = " or ".join(map(str, epochs)) or "unknown"
    items = [
        f"Data: {percent(study.fraction)} of {study.experiment}.",
        f"Trials: {trials} a variant (the paper: {PAPER_TRIALS}), of at most {most} epochs.",
        "Tested: each trial with the weights of its epoch with the lowest validation loss.",
        f"Settings of all trials: {'; '.join(_trials.common_settings(study)) or 'none'}.",
        f"Device: {'; '.join(devices)}.",
        f"Commit: {', '.join(commits)}.",
    ]
    if len(devices) > 1:
        items.append("Note: several devices, so seconds compare devices too.")
    if len(commits) > 1:
        items.append("Note: several commits, so differences may be those of the code.")
    if high > low:
        items.append(
            "Note: numbers of trials differ, so the best of all trials compare budgets too."
        )
    bare = [gate_name(gate) for gate in study.by_gate() if not _has_baseline(study, gate)]
    if bare:
        items.append(f"Note: no complete trial without search of {listed(bare)} to compare with.")
    return Section("How it was made", items=items)


def _has_baseline(study: Study, gate: str) -> bool:
    without = study.without_search(gate)
    is_alone = without is not None and len(study.by_gate()[gate]) == 1
    return is_alone or (without is not None and bool(without.complete))


def _list(study: Study, environments: Sequence[Environment]) -> Section:
    note = "Best first within a variant. Shaded: the trials whose means stand in the tables."
    return Section("Trials", note=note, table=_trials.trials_table(study, environments))
