"""Every model of a study of language, and the settings that all of them share."""

import json
from collections import Counter
from collections.abc import Sequence

from moe_benchmarks._experiments._row import Row
from moe_benchmarks._language._summary import variant_name, variants
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._study_report._document import Cell, Line, Table
from moe_benchmarks._study_report._made_with import Environment, made_with_cell
from moe_benchmarks._study_report._trials import written

SCORE_NAMES = {"matthews": "Matthews correlation", "f1": "F1"}


def check_one_study(rows: Sequence[Row]) -> None:
    """Refuse rows of one task that are of several studies: their seeds are not comparable.

    Raises
    ------
    ValueError
        If settings or pretrained models differ, or a model appears twice.
    """
    task = rows[0]["task"]
    settings = {json.dumps(row["settings"], sort_keys=True) for row in rows}
    pretrained = {row["pretrained"] for row in rows if "pretrained" in row}  # old rows have none
    if len(settings) > 1 or len(pretrained) > 1:
        what = "settings" if len(settings) > 1 else "pretrained models"
        msg = f"rows of {task} are of several studies, with other {what}: report them one by one."
        raise ValueError(msg)
    counts = Counter((row["variant"], row["seed"]) for row in rows)
    (variant, seed), most = counts.most_common(1)[0]
    if most > 1:
        msg = f"{variant} of {task} with seed {seed} appears {most} times: name each study once."
        raise ValueError(msg)


def models_table(rows: Sequence[Row], environments: Sequence[Environment]) -> Table:
    """List every model: its scores with hard routing, and what it was made with."""
    names = TASKS[rows[0]["task"]].score_names
    lines = []
    for variant in variants(rows):
        for row in sorted(_of(rows, variant), key=lambda row: row["seed"]):
            scores = [f"{100 * row['scores']['hard'][name]:.1f}" for name in names]
            cells = [variant_name(variant), str(row["seed"]), *scores, f"{row['seconds'] / 60:.1f}"]
            cells += [row.get("commit") or ""]
            made_with = made_with_cell(row, environments)
            lines.append(Line([*map(Cell, cells), made_with], anchor_of(row)))
    header = ["", "seed", *map(score_name, names), "minutes", "commit", "made with"]
    return Table(header, lines)


def anchor_of(row: Row) -> str:
    """Return the id of a model's line."""
    return f"row-{row['task'].lower()}-{row['variant'].replace('+', '-plus')}-{row['seed']}"


def first_anchor(rows: Sequence[Row], variant: str) -> str:
    """Return the id of the first line of a variant."""
    return anchor_of(min(_of(rows, variant), key=lambda row: row["seed"]))


def settings_of(rows: Sequence[Row]) -> str:
    """Write the settings of a study."""
    settings = {name: value for name, value in rows[0]["settings"].items() if value is not None}
    return f"Settings of all models: {'; '.join(written(settings))}."


def score_name(name: str) -> str:
    """Return a score as people know it."""
    return SCORE_NAMES.get(name, name.replace("_", " "))


def _of(rows: Sequence[Row], variant: str) -> list[Row]:
    return [row for row in rows if row["variant"] == variant]
