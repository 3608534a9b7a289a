"""What fine-tuning and distillation share: steps, and scores of a model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_benchmarks._experiments._run import DivergedError
from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._language._settings import Precision
from moe_benchmarks._resumable import epoch_seed, row_order
from moe_runtime import (
    hard_routing,
    load_checkpoint,
    load_training_tensors,
    save_checkpoint,
    training_tensors,
)

# Of the weights of linear maps and embeddings, as fine-tuning usually has it.
WEIGHT_DECAY = 0.01
LARGEST_NORM = 1.0  # of the gradient of a step, where it is cut off
EVALUATION_ROWS = 64

OnStep = Callable[[int, int], None]
StepLoss = Callable[[Batch], Tensor]


@dataclass
class Progress:
    """What is known of a training run, besides its tensors."""

    losses: list[float] = field(default_factory=list)  # mean of each epoch's steps
    notes: list[dict[str, Any]] = field(default_factory=list)  # of the caller, in JSON's terms


def train_epochs(
    model: nn.Module,
    rows: EncodedRows,
    loss_of: StepLoss,
    checkpoint: Path,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    precision: Precision,
    seed: int,
    others: Mapping[str, Any] = MappingProxyType({}),
    before_epoch: Callable[[int, Progress], None] = lambda _epoch, _progress: None,
    after_step: Callable[[], None] = lambda: None,
    on_step: OnStep = lambda _done, _total: None,
) -> Progress:
    """Train with AdamW and a learning rate that falls linearly to 0.

    Every epoch is saved in `checkpoint`, with `others` that have a state; a run that finds it
    continues from it, with the same numbers.
    """
    decayed = [each for each in model.parameters() if each.requires_grad and each.ndim > 1]
    rest = [each for each in model.parameters() if each.requires_grad and each.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    progress = Progress()
    if checkpoint.exists():
        tensors, records = load_checkpoint(checkpoint)
        load_training_tensors(model, optimizer, tensors, others)
        progress = Progress(**records)
    steps = -(-len(rows) // batch_size)
    is_mixed = precision == "bfloat16"
    for epoch in range(len(progress.losses), epochs):
        before_epoch(epoch, progress)
        model.train()
        torch.manual_seed(epoch_seed(seed, epoch))  # of dropout
        summed = torch.zeros((), dtype=torch.float64, device=rows.device)
        for step, parts in enumerate(rows.shuffled(batch_size, seed=seed, epoch=epoch)):
            done = epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - done / (epochs * steps))
            optimizer.zero_grad(set_to_none=True)
            num_rows = sum(len(part["input_ids"]) for part in parts)
            for part in parts:
                with torch.autocast(rows.device.type, torch.bfloat16, enabled=is_mixed):
                    loss = loss_of(part) * (len(part["input_ids"]) / num_rows)
                loss.backward()  # type: ignore[no-untyped-call]
                summed += loss.detach().double() * num_rows
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
            optimizer.step()
            after_step()
            on_step(done + 1, epochs * steps)
        progress.losses.append(float(summed / len(rows)))
        if not np.isfinite(progress.losses[-1]):
            msg = f"the training loss of epoch {epoch + 1} is {progress.losses[-1]}."
            raise DivergedError(msg)
        state = training_tensors(model, optimizer, others)
        save_checkpoint(checkpoint, state, settings=asdict(progress))
    return progress


@torch.no_grad()
def scores_of(model: Any, rows: EncodedRows, *, hard: bool) -> dict[str, float]:  # noqa: ANN401 - of transformers
    """Return the task's official scores of a model, in evaluation mode."""
    model.eval()
    with hard_routing(model) if hard else nullcontext():
        outputs = [model(**rows.inputs(batch)) for batch in rows.in_order(EVALUATION_ROWS)]
    return rows.score(outputs)


def token_batches(rows: EncodedRows, num_tokens: int, *, seed: int, epoch: int) -> Iterator[Batch]:
    """Yield batches of an epoch's rows, of any lengths, until they hold so many tokens."""
    held = 0
    # Not in parts of like length: the last tokens, which confirm, are to be like the first.
    for some in torch.split(row_order(seed, epoch, len(rows)), EVALUATION_ROWS):
        if held >= num_tokens:
            return
        batch = rows.batch(some.tolist())
        held += int(batch["attention_mask"].sum())
        yield batch
