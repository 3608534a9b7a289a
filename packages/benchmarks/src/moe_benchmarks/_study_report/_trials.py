"""Trials and their settings: the best of each variant, and all of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_benchmarks._experiments._catalog import EXPERIMENTS
from moe_benchmarks._experiments._gates import GATES
from moe_benchmarks._statistics import Row, is_complete
from moe_benchmarks._study_report._document import Cell, Line, Table
from moe_benchmarks._study_report._made_with import Environment, made_with_cell
from moe_benchmarks._study_report._study import Study
from moe_benchmarks._study_report._tables import NONE, linked, name_of

# Shown for every trial, whether they vary or not.
ALWAYS = ("seed", "learning_rate")
# Settings that are drawn from a grid, and the experiment's name for it.
GRIDS = {"gamma": "gammas", "entropy_weight": "entropy_weights"}
# Searches that are over before training.
WITHOUT_EPOCHS = ("identity", "random")
EDGE = 0.05  # of the range of a learning rate's logarithm


def settings_table(study: Study) -> Table:
    """List the settings of each variant's best trial."""
    names = _varying(study.rows)
    lines = [
        Line(
            [
                name_of(variant),
                *(
                    linked(variant, [variant.best], text)
                    for text in (
                        str(variant.best["trial"]),
                        f"{variant.best['best_epoch'] + 1} of {len(variant.best['history'])}",
                        *(_chosen(study, variant.best, name) for name in names),
                    )
                ),
            ]
        )
        for variant in study.variants
        if variant.best is not None
    ]
    return Table(["gate and search", "trial", "best epoch", *map(_words, names)], lines)


def epochs_finding(study: Study) -> str:
    """Say how many best trials were still getting better when their epochs ended."""
    best = [each.best for each in study.variants if each.best is not None]
    ended = sum(
        row["best_epoch"] + 1 >= (row["settings"].get("epochs") or math.inf) for row in best
    )
    if not ended:
        return ""
    return (
        f"The best trials of {ended} of {len(best)} variants were at their best in the last epoch "
        "that they had: more epochs would lower those losses, and could change the order."
    )


def trials_table(study: Study, environments: Sequence[Environment]) -> Table:
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
                made_with_cell(row, environments),
                Cell(row.get("error") or "", is_text=True),
            ]
            lines.append(Line(cells, variant.anchor(row), row["trial"] in top))
    return Table(header, lines)


def common_settings(study: Study) -> list[str]:
    """Write the settings that all trials share."""
    names = _varying(study.rows)
    settings = study.rows[0]["settings"]
    return written({name: settings[name] for name in settings if name not in names})


def written(settings: Mapping[str, Any]) -> list[str]:
    """Write settings with their names."""
    return [f"{_words(name)} {_setting(value)}" for name, value in settings.items()]


def _varying(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys([*ALWAYS, *(name for row in rows for name in row["settings"])])
    return [
        name
        for name in names
        if name in ALWAYS
        or any(row["settings"].get(name) != rows[0]["settings"].get(name) for row in rows)
    ]


def _words(name: str) -> str:
    return name.replace("num_", "number of ").replace("_", " ")


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


def _chosen(study: Study, best: Row, name: str) -> str:
    """Write a setting that a best trial uses, and whether it is at an end of what was searched."""
    gate = GATES.get(best["gate"])  # None for that of another version
    if name in GRIDS and gate is not None and not gate.has_smooth_step:
        return NONE
    if name == "search_epochs" and best["search"] in WITHOUT_EPOCHS:
        return NONE
    value = best["settings"].get(name)
    text = _setting(value)
    experiment = EXPERIMENTS.get(study.experiment)
    if experiment is None or not isinstance(value, float):
        return text
    is_edge = False
    if name == "learning_rate":
        low, high = map(math.log, experiment.learning_rates)
        place = (math.log(value) - low) / (high - low)
        is_edge = not EDGE <= place <= 1 - EDGE
    elif name in GRIDS:
        grid = getattr(experiment, GRIDS[name])
        is_edge = value in (min(grid), max(grid))
    return f"{text} (edge)" if is_edge else text


def _setting(value: Any) -> str:  # noqa: ANN401 - any JSON value
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return str(value)
