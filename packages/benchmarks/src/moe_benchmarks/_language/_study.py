"""All models of one seed: the dense one, and a sparse one for each router, as result rows."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moe_benchmarks._device import CPU
from moe_benchmarks._experiments._row import Row, made_with
from moe_benchmarks._files import claim_for, write_text
from moe_benchmarks._language._batches import EncodedRows
from moe_benchmarks._language._dense import fine_tuned, importance_of, is_kept
from moe_benchmarks._language._distil import Distilled, distil
from moe_benchmarks._language._library import identity, load_tokenizer
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._students import DENSE, STUDENTS, TRAINER, VARIANTS
from moe_benchmarks._language._task import Examples
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._language._trainer import fine_tuned_by_trainer
from moe_benchmarks._language._training import OnStep, scores_of
from moe_benchmarks._resumable import row_order
from moe_benchmarks._tune._storage import ROWS, read_rows
from moe_runtime import Watcher

# Rows that are held out: one in so many, and no more than tell settings apart.
HELD_OUT, MOST_HELD_OUT = 10, 1000
# Keys that every row of a study has.
LANGUAGE = frozenset({"task", "variant", "seed", "scores"})
PRETRAINED = "pretrained"  # key of the identity of the model that all are made from


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
        The folder that has the task's.
    device
        Where models are trained and scored.
    pretrained
        The identity of the model that the study was begun with, if it is known; `model` may then
        be one of the study's own.
    """

    def __init__(
        self,
        settings: LanguageSettings,
        model: str,
        folder: Path,
        data_dir: Path,
        device: torch.device = CPU,
        pretrained: str | None = None,
    ) -> None:
        self.settings, self.model, self.folder, self.device = settings, model, folder, device
        self.task = TASKS[settings.task]
        self._train_examples, dev = _chosen(*self.task.read(data_dir), settings)
        self.num_train, self.num_dev = len(self._train_examples), len(dev)
        self.tokenizer = load_tokenizer(model)
        self.dev_rows = self._encode(dev)
        self.pretrained = identity(model) if pretrained is None else pretrained
        wanted = {**settings.to_dict(), "num_rows": self.num_train, PRETRAINED: self.pretrained}
        claim_for(folder, wanted, kind="study")

    @cached_property
    def train_rows(self) -> EncodedRows:
        """The training rows as tokens, which only training needs."""
        return self._encode(self._train_examples)

    def _encode(self, examples: Examples) -> EncodedRows:
        rows = self.task.encode(self.tokenizer, examples, self.settings.max_length)
        rows.device = self.device
        return rows

    def rows(self) -> list[Row]:
        """Return the rows so far."""
        path = self.folder / ROWS
        return read_rows(path, LANGUAGE) if path.exists() else []

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """List the cells that have no row yet, and the dense models that they begin with."""
        done = {(row["seed"], row["variant"]) for row in self.rows()}
        missing = [cell for cell in cells if tuple(cell) not in done]
        seeds = {cell.seed for cell in missing if cell.variant in STUDENTS}
        begun = {seed for seed in seeds if is_kept(self._home(Cell(seed, DENSE)))}
        gone = [Cell(seed, DENSE) for seed in sorted(seeds - begun)]
        return [cell for cell in gone if cell not in missing] + missing

    def add(self, row: Row) -> None:
        """Add a row to those that there are, in the place of the one that its model has."""
        cell = Cell(row["seed"], row["variant"])
        others = [each for each in self.rows() if (each["seed"], each["variant"]) != cell]
        rows = sorted([*others, row], key=lambda row: (row["seed"], VARIANTS.index(row["variant"])))
        write_text(self.folder / ROWS, "".join(json.dumps(each) + "\n" for each in rows))
        self._checkpoint(cell).unlink(missing_ok=True)

    def train(self, cell: Cell, on_step: Callable[[str, int, int], None]) -> Row:
        """Train one model and score it: its row. The dense one brings the importance along."""
        begin = time.perf_counter()

        def during(stage: str) -> OnStep:
            return lambda done, total: on_step(stage, done, total)

        self._home(cell).mkdir(parents=True, exist_ok=True)
        found = self._train(cell, self._home(cell), during)
        return {
            "task": self.task.name,
            "variant": cell.variant,
            "seed": cell.seed,
            "settings": self.settings.to_dict(),
            PRETRAINED: self.pretrained,
            "train_rows": self.num_train,
            "rows": self.num_dev,
            **found,
            "seconds": time.perf_counter() - begin,
            **made_with(self.device, "transformers"),
        }

    def model_folder(self, cell: Cell) -> Path:
        """Return where a trained model is kept, with its tokenizer, as transformers reads it."""
        return self._home(cell) / cell.variant

    def _home(self, cell: Cell) -> Path:
        return self.folder / f"seed-{cell.seed}"

    def _checkpoint(self, cell: Cell) -> Path:
        return self._home(cell) / f"{cell.variant}.safetensors"

    def _train(self, cell: Cell, home: Path, during: Callable[[str], OnStep]) -> dict[str, Any]:
        fine_tune = fine_tuned_by_trainer if cell.variant == TRAINER else fine_tuned
        dense = fine_tune(
            self.model,
            self.train_rows,
            self.settings,
            home,
            seed=cell.seed,
            on_step=during("fine-tuning"),
        )
        if cell.variant == TRAINER:
            return self._found_dense(dense)
        importance = importance_of(dense, self.train_rows, home, during("importance"))
        if cell.variant == DENSE:
            self.tokenizer.save_pretrained(self.model_folder(cell))
            return self._found_dense(dense)
        distilled = distil(
            dense,
            STUDENTS[cell.variant],
            importance,
            self.train_rows,
            self.settings,
            self._checkpoint(cell),
            seed=cell.seed,
            on_step=during("distilling"),
        )
        distilled.model.save_pretrained(self.model_folder(cell))
        self.tokenizer.save_pretrained(self.model_folder(cell))
        return self._found_sparse(distilled)

    def _found_dense(self, dense: Any) -> dict[str, Any]:  # noqa: ANN401 - of transformers
        scores = scores_of(dense, self.dev_rows, hard=False)
        return {"scores": {"trained": scores, "hard": scores}}

    def _found_sparse(self, distilled: Distilled) -> dict[str, Any]:
        scores, routing = {}, {}
        for how in ("trained", "hard"):
            with Watcher(distilled.model) as watcher:
                scores[how] = scores_of(distilled.model, self.dev_rows, hard=how == "hard")
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


def _chosen(
    train: Examples, dev: Examples, settings: LanguageSettings
) -> tuple[Examples, Examples]:
    """Take what is trained on, and what is scored."""
    order = row_order(0, 0, len(train)).tolist()
    if settings.evaluate_on == "held-out":
        num_held = min(len(train) // HELD_OUT, MOST_HELD_OUT)
        dev, order = train.take(order[:num_held]), order[num_held:]
    if settings.train_rows is not None:
        order = order[: settings.train_rows]
    return train.take(order), dev
