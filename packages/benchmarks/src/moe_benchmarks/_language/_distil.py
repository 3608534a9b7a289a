"""A sparse model learns from the dense one that it was made from.

Axes: T tokens, D features.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moe_gates
from moe_benchmarks._experiments._searches import CONFIRMED_FROM
from moe_benchmarks._language._batches import Batch, EncodedRows
from moe_benchmarks._language._settings import LanguageSettings
from moe_benchmarks._language._students import Student, Vocabulary
from moe_benchmarks._language._task import Task
from moe_benchmarks._language._tasks import TASKS
from moe_benchmarks._language._training import OnStep, Progress, token_batches, train_epochs
from moe_runtime import Router, RouterSchedule, SearchRows, search_permutations
from moe_runtime.convert import (
    ConversionReport,
    ImportanceSplit,
    SparseFeedForward,
    convert,
    converted_layers,
    hidden_state_loss,
)


@dataclass(frozen=True)
class LayerSearch:
    """What the search of one layer's permutations did, on the tokens that confirm."""

    epoch: int
    layer: str
    cost_before: float  # mean squared distance from the dense layer
    cost_after: float
    gain: float
    standard_error: float
    num_moved: int


@dataclass(frozen=True)
class Distilled:
    """A sparse model and what is known of how it came about."""

    model: Any
    conversion: ConversionReport
    losses: list[float]  # mean of each epoch's steps
    searches: list[LayerSearch]


def distil(
    dense: Any,  # noqa: ANN401 - of transformers
    student: Student,
    importance: dict[str, Tensor],
    rows: EncodedRows,
    settings: LanguageSettings,
    checkpoint: Path,
    *,
    seed: int,
    on_step: OnStep = lambda _done, _total: None,
) -> Distilled:
    """Convert a copy of the dense model, and train it on the task and on the dense one's states.

    Continues from the checkpoint that an interrupted call has left; the caller deletes it.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(dense)
    report = _convert(model, student, importance, rows, settings, seed)
    dense.eval()
    schedule = _gamma_schedule(model, settings, len(rows))
    inputs = _watch_inputs(model)

    def before_epoch(epoch: int, progress: Progress) -> None:
        if student.is_searched and epoch <= settings.distil_epochs // 2:
            batches = list(token_batches(rows, settings.search_tokens, seed=seed, epoch=epoch))
            found = _search_layers(model, dense, batches, settings, epoch)
            progress.notes += map(asdict, found)

    def after_step() -> None:
        for layer, parts in inputs.items():
            router = layer.mixture.routers[0]
            if getattr(router, "scale", None) is not None:
                router.update_scale(torch.cat(parts))  # type: ignore[operator]
        inputs.clear()
        if schedule is not None:
            schedule.step()

    progress = train_epochs(
        model,
        rows,
        partial(_loss, model, dense, TASKS[settings.task], settings.distil_weight),
        checkpoint,
        epochs=settings.distil_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.distil_learning_rate,
        precision=settings.precision,
        seed=seed,
        others={} if schedule is None else {"schedule": schedule},
        before_epoch=before_epoch,
        after_step=after_step,
        on_step=on_step,
    )
    searches = [LayerSearch(**note) for note in progress.notes]
    return Distilled(model, report, progress.losses, searches)


def _convert(
    model: Any,  # noqa: ANN401 - of transformers
    student: Student,
    importance: dict[str, Tensor],
    rows: EncodedRows,
    settings: LanguageSettings,
    seed: int,
) -> ConversionReport:
    num_hidden = min(len(each) for each in importance.values())
    width = settings.width or num_hidden // 4
    num_shared = settings.num_shared or (0 if settings.width else width * 2 // 3)
    ids = Vocabulary(model.config.vocab_size, rows.token_counts)
    layer_seeds = count(seed * 1000)  # another hash table for each layer
    return convert(
        model,
        rows.batch(list(range(min(len(rows), 16)))),
        router=lambda dim: student.build(dim, ids, settings, next(layer_seeds)),
        split=ImportanceSplit(importance, width=width, num_shared=num_shared),
    )


def _loss(model: Any, dense: Any, task: Task, distil_weight: float, batch: Batch) -> Tensor:  # noqa: ANN401 - of transformers
    """Return the task's loss, the penalty, and the distance from the dense model."""
    output = model(**batch, output_hidden_states=True)
    with torch.no_grad():
        teacher = dense(**batch, output_hidden_states=True)
    distance = hidden_state_loss(
        output.hidden_states, teacher.hidden_states, batch["attention_mask"]
    )
    distance = distance + task.distance(output, teacher, batch)
    total: Tensor = output.loss + distil_weight * distance
    return total


def _gamma_schedule(
    model: Any,  # noqa: ANN401 - of transformers
    settings: LanguageSettings,
    num_rows: int,
) -> RouterSchedule | None:
    routers = [each for each in model.modules() if isinstance(each, Router)]
    if not any(hasattr(each, "gamma") for each in routers):
        return None
    num_steps = settings.distil_epochs * -(-num_rows // settings.batch_size)
    falling = partial(
        moe_gates.exponential_schedule,
        start=settings.gamma,
        end=settings.last_gamma,
        num_steps=num_steps,
    )
    return RouterSchedule(model, gamma=falling)


def _watch_inputs(model: Any) -> dict[SparseFeedForward, list[Tensor]]:  # noqa: ANN401 - of transformers
    """Keep what each layer is given in training, without padding, until it is cleared."""
    inputs: dict[SparseFeedForward, list[Tensor]] = {}

    def keep(layer: SparseFeedForward, args: tuple[Tensor], _output: Tensor) -> None:
        if layer.training:
            inputs.setdefault(layer, []).append(_tokens(layer, args[0]))

    for layer in converted_layers(model):
        layer.register_forward_hook(keep)
    return inputs


def _tokens(layer: SparseFeedForward, x: Tensor) -> Tensor:
    mask = layer.tokens.mask_for(x)
    return (x.reshape(-1, x.shape[-1]) if mask is None else x[mask]).detach()


def _search_layers(
    model: Any,  # noqa: ANN401 - of transformers
    dense: Any,  # noqa: ANN401 - of transformers
    batches: list[Batch],
    settings: LanguageSettings,
    epoch: int,
) -> list[LayerSearch]:
    """Search one layer after the other, from the first: each sees what was set before it.

    A layer is to bring its tokens to where the dense model has them before the norm.
    """
    model.eval()
    found = []
    layers = converted_layers(model)
    dense_states = _dense_states(dense, layers, batches)
    for layer in layers:
        x_TD = _given(model, layer, batches)[: settings.search_tokens]
        target_TD = dense_states[layer][: len(x_TD)] - x_TD
        before = layer.mixture.routers[0].get_buffer("permutation").clone()
        result = search_permutations(
            layer.mixture,
            SearchRows(x_TD, _distance_from(target_TD)),
            num_standard_errors=CONFIRMED_FROM,
        )[0]
        assert result.confirmation is not None
        now = layer.mixture.routers[0].get_buffer("permutation")
        found.append(
            LayerSearch(
                epoch=epoch,
                layer=layer.replaced.name,
                cost_before=result.confirmation.cost_before,
                cost_after=result.confirmation.cost_after,
                gain=result.confirmation.gain,
                standard_error=float(result.confirmation.standard_error),
                num_moved=int((now != before).sum()),
            )
        )
    return found


def _distance_from(target_TD: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, rows: (output - target_TD[rows]).square().sum(-1)


@torch.no_grad()
def _given(model: Any, layer: SparseFeedForward, batches: list[Batch]) -> Tensor:  # noqa: ANN401 - of transformers
    """Return what a layer is given for the tokens of some batches, (T, D)."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(
        lambda module, args, _output: kept.append(_tokens(module, args[0]))
    )
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat(kept)


@torch.no_grad()
def _dense_states(
    dense: Any,  # noqa: ANN401 - of transformers
    layers: list[SparseFeedForward],
    batches: list[Batch],
) -> dict[SparseFeedForward, Tensor]:
    """Return where the dense layers bring the same tokens, (T, D): what each is given and gives."""
    given: dict[SparseFeedForward, list[Tensor]] = {layer: [] for layer in layers}
    gave: dict[SparseFeedForward, list[Tensor]] = {layer: [] for layer in layers}
    with ExitStack() as stack:
        for layer in layers:
            up, down = (
                dense.get_submodule(name) for name in (layer.replaced.up, layer.replaced.down)
            )
            keep_given, keep_gave = given[layer].append, gave[layer].append
            stack.callback(up.register_forward_hook(partial(_keep_input, keep_given)).remove)
            stack.callback(down.register_forward_hook(partial(_keep_output, keep_gave)).remove)
        for batch in batches:
            dense(**batch)
    masks = [batch["attention_mask"].bool() for batch in batches]
    return {
        layer: torch.cat(
            [(x + y)[mask] for x, y, mask in zip(given[layer], gave[layer], masks, strict=True)]
        )
        for layer in layers
    }


def _keep_input(
    keep: Callable[[Tensor], None], _module: object, args: tuple[Tensor], _output: Tensor
) -> None:
    keep(args[0])


def _keep_output(
    keep: Callable[[Tensor], None], _module: object, _args: tuple[Tensor], output: Tensor
) -> None:
    keep(output)
