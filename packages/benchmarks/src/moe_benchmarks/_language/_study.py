"""All models of one seed: the dense one, and a sparse one for each router, as result rows."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from moe_benchmarks._experiments._row import Row, made_with
from moe_benchmarks._files import claim_for, write_text
from moe_benchmarks._language._batches import EncodedRows
from moe_benchmarks._language._dense import fine_tuned, importance_of, load_tokenizer
from moe_benchmarks._language._distil import Distilled, distil
from moe_benchmarks._language._glue import Sentences, read_glue
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._students import DENSE, STUDENTS
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._language._training import OnStep, scores_of
from moe_benchmarks._resumable import row_order
from moe_benchmarks._tune._storage import ROWS, read_rows
from moe_runtime import Watcher

# Rows that are held out: one in so many, and no more than tell settings apart.
HELD_OUT, MOST_HELD_OUT = 10, 1000
# Keys that every row of a study has.
LANGUAGE = frozenset({"task", "variant", "seed", "scores"})


class Cell(NamedTuple):
    """One model of a study."""

    seed: int
    variant: str


class LanguageStudy:
    """A task's data and the folder of a study; each model is trained once, whatever interrupts.

    Parameters
    ----------
    settings
        The same for all models; a folder that holds others is refused.
    model
        A local folder, or a name on the hub.
    folder
        For the rows, and for each seed's dense model.
    data_dir
        The folder that has GLUE's.
    """

    def __init__(
        self, settings: LanguageSettings, model: str, folder: Path, data_dir: Path
    ) -> None:
        self.settings, self.model, self.folder = settings, model, folder
        self.task = TASKS[settings.task]
        train, dev = read_glue(self.task, data_dir)
        train, dev = _chosen_rows(train, dev, settings)
        tokenizer = load_tokenizer(model)
        self.train, self.dev = (
            EncodedRows(
                tokenizer,
                rows,
                max_length=settings.max_length,
                is_number=not self.task.labels,
            )
            for rows in (train, dev)
        )
        wanted = {**settings.to_dict(), "num_rows": len(self.train)}
        claim_for(folder, wanted, kind="study")

    def rows(self) -> list[Row]:
        """Return the rows so far."""
        path = self.folder / ROWS
        return read_rows(path, LANGUAGE) if path.exists() else []

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """List the cells that have no row yet."""
        done = {(row["seed"], row["variant"]) for row in self.rows()}
        return [cell for cell in cells if tuple(cell) not in done]

    def run(self, cell: Cell, on_step: Callable[[str, int, int], None]) -> Row:
        """Train one model, score it, and append its row."""
        begin = time.perf_counter()

        def during(stage: str) -> OnStep:
            return lambda done, total: on_step(stage, done, total)

        home = self.folder / f"seed-{cell.seed}"
        home.mkdir(parents=True, exist_ok=True)
        dense = fine_tuned(
            self.model,
            self.train,
            self.settings,
            home,
            seed=cell.seed,
            on_step=during("fine-tuning the dense model"),
        )
        if cell.variant == DENSE:
            scores = scores_of(dense, self.dev, self.task, hard=False)
            found: dict[str, Any] = {"scores": {"trained": scores, "hard": scores}}
        else:
            importance = importance_of(dense, self.train, home, during("importance"))
            distilled = distil(
                dense,
                STUDENTS[cell.variant],
                importance,
                self.train,
                self.settings,
                seed=cell.seed,
                on_step=during(f"distilling, {STUDENTS[cell.variant].name}"),
            )
            found = self._found(distilled)
        row = {
            "task": self.task.name,
            "variant": cell.variant,
            "seed": cell.seed,
            "settings": self.settings.to_dict(),
            "train_rows": len(self.train),
            "rows": len(self.dev),
            **found,
            "seconds": time.perf_counter() - begin,
            **made_with("transformers"),
        }
        rows = [*self.rows(), row]
        write_text(self.folder / ROWS, "".join(json.dumps(each) + "\n" for each in rows))
        return row

    def _found(self, distilled: Distilled) -> dict[str, Any]:
        scores, routing = {}, {}
        for how in ("trained", "hard"):
            with Watcher(distilled.model) as watcher:
                scores[how] = scores_of(distilled.model, self.dev, self.task, hard=how == "hard")
            numbers, loads = watcher.compute(), watcher.loads()
            routing[how] = {
                "experts_per_token": [numbers[f"{name}/experts_per_row"] for name in loads],
                "load": [load.tolist() for load in loads.values()],
            }
        return {
            "scores": scores,
            "routing": routing,
            "losses": distilled.losses,
            "searches": [asdict(each) for each in distilled.searches],
            "layers": [asdict(each) for each in distilled.conversion.layers],
            "num_parameters": distilled.conversion.num_parameters,
            "num_parameters_before": distilled.conversion.num_parameters_before,
        }


def _chosen_rows(
    train: Sentences, dev: Sentences, settings: LanguageSettings
) -> tuple[Sentences, Sentences]:
    """Take the rows that are trained on, and those that are scored."""
    order = row_order(0, 0, len(train)).tolist()
    if settings.evaluate_on == "held-out":
        num_held = min(len(train) // HELD_OUT, MOST_HELD_OUT)
        dev, order = train.take(order[:num_held]), order[num_held:]
    if settings.train_rows is not None:
        order = order[: settings.train_rows]
    return train.take(order), dev
