"""The report of a study of language: a finding, tables, and the scores of each seed."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from moe_benchmarks._experiments._row import Row
from moe_benchmarks._language._models_table import (
    check_one_study,
    first_anchor,
    models_table,
    score_name,
    settings_of,
)
from moe_benchmarks._language._students import DENSE, DENSE_NAMES, TRAINER
from moe_benchmarks._language._summary import (
    estimate,
    kept_share,
    main_scores,
    paired_difference,
    variant_name,
    variants,
)
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._report._style import BLUE, GREY, figure_named, to_svg
from moe_benchmarks._report._template import environment as templates
from moe_benchmarks._study_report._document import Cell, Figure, Line, Section, Table
from moe_benchmarks._study_report._made_with import environments_of, made_with_items
from moe_benchmarks._study_report._markdown import to_markdown

SEARCHED, BASELINES = "comet+", ("hash", "hash-balanced", "top-k", "dselect-k", "comet")


def render_language(rows: Sequence[Row]) -> tuple[str, str]:
    """Return the report of rows of any tasks, as one HTML page and as Markdown.

    Raises
    ------
    ValueError
        If rows of one task are of several studies, or a model appears twice.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    by_task = {task: [row for row in rows if row["task"] == task] for task in tasks}
    for some in by_task.values():
        check_one_study(some)
    findings = [(task, _slug(task), finding(some)) for task, some in by_task.items()]
    environments = environments_of(rows)
    made_with = made_with_items(environments)
    sections = [
        section
        for task, some in by_task.items()
        for section in (
            *_sections(task, some),
            Section("Models", table=models_table(some, environments), note=settings_of(some)),
        )
    ]
    title = f"Sparse models from a dense one: {', '.join(tasks)}"
    page = templates("moe_benchmarks._study_report").get_template("study.html.j2")
    html = page.render(title=title, findings=findings, sections=sections, made_with=made_with)
    return html, to_markdown(title, findings, sections, made_with)


def finding(rows: Sequence[Row]) -> str:
    """Say in sentences what the rows of one task have shown, whichever is ahead."""
    dense = main_scores(rows, DENSE)
    sparse = {
        variant_name(each): main_scores(rows, each)
        for each in variants(rows)
        if each not in DENSE_NAMES
    }
    common = dense.keys() & set.intersection(*map(set, sparse.values())) if sparse else set()
    of_common = {seed: dense[seed] for seed in common}
    kept = {name: kept_share(scores, of_common) for name, scores in sparse.items()}
    shares = {name: share for name, share in kept.items() if share is not None}
    parts = []
    if shares:
        best = max(shares, key=lambda name: shares[name])
        parts.append(
            f"{best} keeps most of the dense model's {_metric(rows)} with {_width(rows):.0%} of "
            f"its feed-forward width a token: {shares[best]:.1%} ({_seeds(len(common))})."
        )
    elif sparse and not common:
        parts.append("The sparse models have no seed in common yet.")
    for other in ("hash", "hash-balanced", "top-k"):
        apart = paired_difference(main_scores(rows, SEARCHED), main_scores(rows, other))
        if apart is None:
            continue
        name = variant_name(other)
        if apart.excludes_zero:
            word = "ahead of" if apart.value > 0 else "behind"
            parts.append(f"COMET+ is {word} {name} by {apart.text(signed=True)} points.")
        else:
            parts.append(
                f"COMET+ and {name} are not told apart by {_seeds(apart.num_seeds)}: "
                f"{apart.text(signed=True)} points."
            )
    apart = paired_difference(dense, main_scores(rows, TRAINER))
    if apart is not None:
        parts.append(
            "The dense model less the same fine-tuned by transformers' Trainer: "
            f"{apart.text(signed=True)} points."
        )
    if not sparse:
        parts.insert(0, "Only the dense model was trained yet.")
    return " ".join(parts)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _sections(task: str, rows: Sequence[Row]) -> list[Section]:
    about = rows[0]
    where = "development rows" if about["settings"]["evaluate_on"] == "dev" else "held-out rows"
    intro = (
        f"{about['rows']} {where}, {about['train_rows']} training rows. Scores are "
        f"{_metric(rows)}, times 100, mean over seeds with a 95 % interval (Student's t). Sparse "
        "models are scored with hard routing, one expert a token, as they would be served. Numbers "
        "link to the models behind them."
    )
    sections = [
        Section(task, _slug(task), 2, [finding(rows)]),
        Section("Scores", paragraphs=[intro], table=_scores(rows), figures=[_figure(task, rows)]),
    ]
    differences = _differences(rows)
    if differences.lines:
        note = "Paired by seed: both had the same dense model, importance and order of rows."
        sections.append(Section("COMET+ less another", table=differences, note=note))
    exports = _exports(rows)
    if exports.lines:
        note = (
            "Scores of ONNX Runtime's answers, hard routing, mean over the seeds exported; times "
            "of batches of rows x tokens, and how many times faster than the dense model in the "
            "same format, timed in turns."
        )
        sections.append(Section("Exported to ONNX", table=exports, note=note))
    searches = _searches(rows)
    if searches.lines:
        note = (
            "Mean squared distance of a token's state from the dense model's, on tokens that the "
            "search had not seen, and by which share of it they came nearer."
        )
        sections.append(Section("What the searches found", table=searches, note=note))
    return sections


def _scores(rows: Sequence[Row]) -> Table:
    dense = main_scores(rows, DENSE)
    _, *others = TASKS[rows[0]["task"]].score_names
    lines = []
    for variant in variants(rows):
        hard, trained = (main_scores(rows, variant, routing=each) for each in ("hard", "trained"))
        kept = kept_share(hard, dense)
        some = [row for row in rows if row["variant"] == variant]
        experts = [
            np.mean(row["routing"]["trained"]["experts_per_token"])
            for row in some
            if "routing" in row
        ]
        lines.append(
            Line(
                [
                    Cell(variant_name(variant)),
                    Cell(
                        estimate(list(hard.values())).text(),
                        first_anchor(rows, variant),
                        is_bold=variant not in DENSE_NAMES,
                    ),
                    *(
                        Cell(estimate(list(main_scores(rows, variant, name=name).values())).text())
                        for name in others
                    ),
                    Cell("" if kept is None or variant in DENSE_NAMES else f"{kept:.1%}"),
                    Cell("" if variant in DENSE_NAMES else estimate(list(trained.values())).text()),
                    Cell(f"{np.mean(experts):.2f}" if experts else ""),
                    Cell(str(len(hard))),
                ]
            )
        )
    header = ["", _metric(rows), *map(score_name, others), "of the dense", "as trained"]
    return Table([*header, "experts a token, as trained", "seeds"], lines)


def _differences(rows: Sequence[Row]) -> Table:
    lines = []
    for other in BASELINES:
        apart = paired_difference(main_scores(rows, SEARCHED), main_scores(rows, other))
        if apart is not None:
            cells = [Cell(variant_name(other)), Cell(apart.text(signed=True))]
            lines.append(Line([*cells, Cell(str(apart.num_seeds))]))
    return Table(["", f"difference in {_metric(rows)}", "seeds"], lines)


def _exports(rows: Sequence[Row]) -> Table:
    exports = {
        (kind, row["variant"], row["seed"]): found
        for row in rows
        for kind, found in row.get("exports", {}).items()
    }
    kinds = list(dict.fromkeys(kind for kind, _, _ in exports))
    batches = list(next(iter(exports.values()))["milliseconds"]) if exports else []
    lines = []
    for kind, variant in product(kinds, variants(rows)):
        own = {seed: each for (*key, seed), each in exports.items() if key == [kind, variant]}
        if not own:
            continue
        score = np.mean([each["scores"][_main_score(rows)] for each in own.values()])
        cells = [variant_name(variant), kind, f"{100 * score:.1f}"]
        for batch in batches:
            times = [each["milliseconds"][batch] for each in own.values()]
            dense = [exports[kind, DENSE, seed]["milliseconds"][batch] for seed in own]
            faster = "" if variant == DENSE else f" ({np.mean(np.divide(dense, times)):.2f}x)"
            cells.append(f"{np.mean(times):.1f} ms{faster}")
        cells.append(f"{np.mean([each['bytes'] for each in own.values()]) / 1e6:.0f} MB")
        cells.append(f"{max(each['error'] for each in own.values()):.1e}")
        lines.append(Line([Cell(each) for each in cells]))
    return Table(["", "format", _metric(rows), *batches, "size", "largest error"], lines)


def _searches(rows: Sequence[Row]) -> Table:
    found = [each for row in rows for each in row.get("searches", [])]
    lines = []
    for layer in dict.fromkeys(each["layer"] for each in found):
        for epoch in sorted({each["epoch"] for each in found}):
            some = [each for each in found if (each["layer"], each["epoch"]) == (layer, epoch)]
            if some:
                share = np.mean([each["gain"] / each["cost_before"] for each in some])
                moved = np.mean([each["num_moved"] for each in some])
                cells = [layer, str(epoch), f"{share:.2%}", f"{moved:.1f}", str(len(some))]
                lines.append(Line([Cell(each) for each in cells]))
    return Table(["layer", "epochs before", "gain", "experts moved", "searches"], lines)


def _figure(task: str, rows: Sequence[Row]) -> Figure:
    name = f"scores-{_slug(task)}"
    with figure_named(name) as figure:
        axes = figure.subplots()
        present = variants(rows)
        for place, variant in enumerate(present):
            values = [100 * each for each in main_scores(rows, variant).values()]
            colour = GREY if variant in DENSE_NAMES else BLUE
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.5)
            axes.plot(np.mean(values), place, "|", color=colour, markersize=22, markeredgewidth=2)
        axes.set_yticks(range(len(present)), [variant_name(each) for each in present])
        axes.set_ylim(len(present) - 0.5, -0.5)
        axes.set_xlabel(f"{_metric(rows)}, times 100")
        svg = to_svg(figure, name)
    return Figure(svg, "A point is a seed, a bar the mean; hard routing.")


def _metric(rows: Sequence[Row]) -> str:
    return score_name(_main_score(rows))


def _main_score(rows: Sequence[Row]) -> str:
    return TASKS[rows[0]["task"]].score_names[0]


def _width(rows: Sequence[Row]) -> float:
    """Return the share of the dense layers' hidden units that a token passes through."""
    layers = [each for row in rows for each in row.get("layers", [])]
    return float(np.mean([each["expert_units"] / each["hidden_units"] for each in layers]))


def _slug(task: str) -> str:
    return task.lower()
