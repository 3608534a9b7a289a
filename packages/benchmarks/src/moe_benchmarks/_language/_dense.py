"""The dense model of a task: fine-tuned once for each seed, and kept."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_benchmarks._language._batches import EncodedRows
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._language._training import OnStep, train_epochs
from moe_runtime import load_checkpoint, save_checkpoint
from moe_runtime.convert import hidden_unit_importance

IMPORTANCE_ROWS = 32
KEPT, DONE = "dense", "done"  # the folder of a seed's dense model, and what is in a whole one


def pretrained(model: str, settings: LanguageSettings, *, seed: int) -> Any:  # noqa: ANN401 - of transformers
    """Load a pretrained model with a new head for the task."""
    torch.manual_seed(seed)  # of the head
    return TASKS[settings.task].load(model)


def is_kept(folder: Path) -> bool:
    """Whether a folder has the dense model of its seed."""
    return (folder / KEPT / DONE).exists()


def fine_tuned(
    model: str,
    rows: EncodedRows,
    settings: LanguageSettings,
    folder: Path,
    *,
    seed: int,
    on_step: OnStep = lambda _done, _total: None,
) -> Any:  # noqa: ANN401 - of transformers
    """Fine-tune a pretrained model on a task, or load what an earlier call has left there."""
    kept = folder / KEPT
    if is_kept(folder):
        return TASKS[settings.task].load(kept).to(rows.device)
    dense = pretrained(model, settings, seed=seed).to(rows.device)
    checkpoint = folder / "dense.safetensors"
    train_epochs(
        dense,
        rows,
        lambda batch: dense(**batch).loss,
        checkpoint,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        precision=settings.precision,
        seed=seed,
        on_step=on_step,
    )
    dense.eval().save_pretrained(kept)
    (kept / DONE).touch()
    checkpoint.unlink()
    return dense


def importance_of(
    dense: Any,  # noqa: ANN401 - of transformers
    rows: EncodedRows,
    folder: Path,
    on_step: OnStep = lambda _done, _total: None,
) -> dict[str, Tensor]:
    """Return the importance of hidden units on the training rows, or what was kept of it."""
    path = folder / "importance.safetensors"
    if path.exists():
        return load_checkpoint(path)[0]
    total = -(-len(rows) // IMPORTANCE_ROWS)

    def watched() -> Any:  # noqa: ANN401 - batches
        for done, batch in enumerate(rows.in_order(IMPORTANCE_ROWS)):
            yield batch
            on_step(done + 1, total)

    found = hidden_unit_importance(dense, watched())
    save_checkpoint(path, found)
    return found
