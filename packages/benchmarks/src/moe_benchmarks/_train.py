"""Train one model: resumable at every epoch, and the same numbers however often interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_benchmarks._gates import Gate, build_model, inputs
from moe_benchmarks._model import Prediction, TwoTaskModel
from moe_benchmarks._resumable import copy_state, load_run, row_order, save_run
from moe_benchmarks._settings import QuickstartSettings
from moe_benchmarks._two_digits import TASKS, Split, TwoDigits
from moe_runtime import SearchRows, hard_routing, load_tensors, search_permutations

# Standard errors above which the gain of a search on unseen rows is believed.
CONFIRMED_FROM = 2.0
CHECKPOINT = "checkpoint.safetensors"  # of a run, in its folder


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training looked like."""

    train_loss: float  # mean over its batches, penalty left out, in nats
    validation_loss: float  # after it, as trained, in nats
    validation_loss_hard: float  # after it, with hard routing, in nats
    experts_per_row: float  # after it, on the validation rows, mean over rows and tasks


@dataclass(frozen=True)
class Search:
    """What the permutation search of one task did."""

    task: str
    cost_before: float  # mean loss on the search rows, in nats
    cost_after: float
    gain: float  # mean paired gain on the confirmation rows, in nats
    standard_error: float
    accepted: bool
    num_moved: int  # positions that stand for another expert than before
    num_positions: int  # over all trees


@dataclass
class TrainedModel:
    """A trained model at its best epoch, and how it came about."""

    model: TwoTaskModel
    history: list[Epoch]
    searches: list[Search]
    best_epoch: int  # 0-based


def task_loss(prediction: Prediction, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over rows and tasks."""
    losses = [
        F.cross_entropy(logits, labels[:, task]) for task, logits in enumerate(prediction.logits)
    ]
    return torch.stack(losses).mean()


def train(
    gate: Gate,
    settings: QuickstartSettings,
    seed: int,
    data: TwoDigits,
    folder: Path,
    *,
    on_epoch: Callable[[int, Epoch], None],
) -> TrainedModel:
    """Train to the last epoch, continuing from the checkpoint in `folder` if there is one.

    Returns the weights of the epoch with the lowest validation loss with hard routing, since
    that is how the model is served.
    """
    model = build_model(gate, settings, seed, data.train.pixels.mean(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    best = copy_state(model)
    history: list[Epoch] = []
    searches: list[Search] = []
    path = folder / CHECKPOINT
    if path.exists():
        state, best = load_run(path, model, optimizer)
        history = [Epoch(**epoch) for epoch in state["history"]]
        searches = [Search(**search) for search in state["searches"]]
    for done, epoch in enumerate(history):
        on_epoch(done, epoch)
    for number in range(len(history), settings.epochs):
        order = row_order(seed, number, settings.num_train)
        if gate.is_searched and number == settings.search_epoch:
            searches = _search(model, data.train, order[: settings.search_rows])
        train_loss = _train_epoch(model, optimizer, gate, data.train, order, settings.batch_size)
        history.append(Epoch(train_loss, *_validate(model, gate, data.validation)))
        if _best_epoch(history) == number:
            best = copy_state(model)
        save_run(path, model, optimizer, best, history, searches)
        on_epoch(number, history[-1])
    load_tensors(model, best)
    model.eval()
    return TrainedModel(model, history, searches, _best_epoch(history))


def _best_epoch(history: list[Epoch]) -> int:
    return min(range(len(history)), key=lambda number: history[number].validation_loss_hard)


def _train_epoch(
    model: TwoTaskModel,
    optimizer: torch.optim.Optimizer,
    gate: Gate,
    split: Split,
    order: Tensor,
    batch_size: int,
) -> float:
    model.train()
    total = 0.0
    for rows in torch.split(order, batch_size):
        prediction = model(*inputs(gate, split, rows))
        loss = task_loss(prediction, split.labels[rows])
        optimizer.zero_grad(set_to_none=True)
        (loss + prediction.penalty).backward()
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(order)


@torch.no_grad()
def _validate(model: TwoTaskModel, gate: Gate, split: Split) -> tuple[float, float, float]:
    model.eval()
    prediction = model(*inputs(gate, split))
    experts_per_row = (prediction.weights_GTE != 0).sum(-1).double().mean().item()
    with hard_routing(model):
        hard = model(*inputs(gate, split))
    return (
        task_loss(prediction, split.labels).item(),
        task_loss(hard, split.labels).item(),
        experts_per_row,
    )


def _search(model: TwoTaskModel, split: Split, rows: Tensor) -> list[Search]:
    """Search each task's permutations on some training rows, and set what is confirmed."""
    model.eval()
    labels = split.labels[rows]

    def loss_of(task: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda output, some: F.cross_entropy(
            model.heads[task](output), labels[some, task], reduction="none"
        )

    searched = SearchRows(
        model.center(split.pixels[rows]), [loss_of(task) for task in range(len(TASKS))]
    )
    before = [router.get_buffer("permutation").clone() for router in model.mixture.routers]
    results = search_permutations(model.mixture, searched, num_standard_errors=CONFIRMED_FROM)
    found = []
    for task, result in results.items():
        assert result.confirmation is not None
        after = torch.from_numpy(result.permutation)
        found.append(
            Search(
                task=TASKS[task],
                cost_before=result.cost_before,
                cost_after=result.cost_after,
                gain=result.confirmation.gain,
                standard_error=result.confirmation.standard_error,
                accepted=bool(result.confirmation.accepted),
                num_moved=int(torch.ne(after, before[task]).sum()),
                num_positions=before[task].numel(),
            )
        )
    return found
