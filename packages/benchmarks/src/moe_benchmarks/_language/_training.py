"""What fine-tuning and distillation share: steps, and scores of a model."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_benchmarks._experiments._loop import DivergedError
from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._resumable import epoch_seed
from moe_runtime import hard_routing

# Of the weights of linear maps and embeddings, as fine-tuning usually has it.
WEIGHT_DECAY = 0.01
LARGEST_NORM = 1.0  # of the gradient of a step, where it is cut off
EVALUATION_ROWS = 64

OnStep = Callable[[int, int], None]
StepLoss = Callable[[Batch], Tensor]


def train_epochs(
    model: nn.Module,
    rows: EncodedRows,
    loss_of: StepLoss,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    before_epoch: Callable[[int], None] = lambda _epoch: None,
    after_step: Callable[[], None] = lambda: None,
    on_step: OnStep = lambda _done, _total: None,
) -> list[float]:
    """Train with AdamW and a learning rate that falls linearly to 0; return each epoch's loss."""
    decayed = [each for each in model.parameters() if each.requires_grad and each.ndim > 1]
    others = [each for each in model.parameters() if each.requires_grad and each.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    total = epochs * -(-len(rows) // batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    losses, done = [], 0
    for epoch in range(epochs):
        before_epoch(epoch)
        model.train()
        torch.manual_seed(epoch_seed(seed, epoch))  # of dropout
        summed, counted = torch.zeros((), dtype=torch.float64), 0
        for batch in rows.shuffled(batch_size, seed=seed, epoch=epoch):
            loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
            optimizer.step()
            schedule.step()
            after_step()
            summed += loss.detach().double() * len(batch["input_ids"])
            counted += len(batch["input_ids"])
            done += 1
            on_step(done, total)
        losses.append(float(summed / counted))
        if not np.isfinite(losses[-1]):
            msg = f"the training loss of epoch {epoch + 1} is {losses[-1]}."
            raise DivergedError(msg)
    return losses


@torch.no_grad()
def scores_of(model: Any, rows: EncodedRows, *, hard: bool) -> dict[str, float]:  # noqa: ANN401 - of transformers
    """Return the task's official scores of a model, in evaluation mode."""
    model.eval()
    with hard_routing(model) if hard else nullcontext():
        outputs = [model(**rows.inputs(batch)) for batch in rows.in_order(EVALUATION_ROWS)]
    return rows.score(outputs)


def token_batches(rows: EncodedRows, num_tokens: int, *, seed: int, epoch: int) -> Iterator[Batch]:
    """Yield batches of an epoch's rows until they hold so many tokens."""
    held = 0
    for batch in rows.shuffled(EVALUATION_ROWS, seed=seed, epoch=epoch):
        if held >= num_tokens:
            return
        held += int(batch["attention_mask"].sum())
        yield batch
