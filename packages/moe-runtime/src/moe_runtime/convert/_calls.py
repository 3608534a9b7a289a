"""What each module of a model was given and gave, on a few rows.

Axes: T rows, F features.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from moe_runtime._modes import evaluating, in_mode

# Enough to tell one function from another, and small beside any model.
NUM_ROWS = 64

Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass
class Call:
    """The first call of a module with one tensor, which gave one tensor."""

    order: int  # in which the calls ended
    input: Tensor  # (T, F), at most NUM_ROWS rows
    output: Tensor
    count: int = 1  # calls in all


def run_model(model: nn.Module, batch: Batch) -> Any:  # noqa: ANN401 - whatever the model gives
    """Call the model with keyword arguments, with several inputs, or with one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def told_apart(model: nn.Module, batch: Batch) -> Batch:
    """Leave out the last of as many sequences as each has tokens.

    Otherwise a model whose hidden states have sequences second would not show by their shape.
    A square tensor that is something else, as a causal mask is, leaves the batch as it is.
    """
    several = (batch,) if isinstance(batch, Tensor) else batch
    values: Iterable[Any] = several.values() if isinstance(several, Mapping) else several
    sizes = {each.shape[0] for each in values if isinstance(each, Tensor) and _is_square(each)}

    def cut(value: Any) -> Any:  # noqa: ANN401 - whatever a model takes
        is_long = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] in sizes
        return value[:-1] if is_long else value

    if not sizes:
        return batch
    if isinstance(batch, Mapping):
        shorter: Batch = {name: cut(value) for name, value in batch.items()}
    else:
        shorter = tuple(map(cut, batch)) if isinstance(batch, tuple) else cut(batch)
    try:
        with torch.no_grad(), evaluating(model):
            run_model(model, shorter)
    except Exception:  # noqa: BLE001 - whatever the model says of what fits together no more
        return batch
    return shorter


def _is_square(x: Tensor) -> bool:
    return x.ndim > 1 and 1 < x.shape[0] == x.shape[1]


@torch.no_grad()
def record_calls(model: nn.Module, batch: Batch) -> dict[str, Call]:
    """Run a model as it is, and keep the first rows of each module's first call."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:  # noqa: ANN401 - a hook, as torch has it
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            given = [*args, *kwargs.values()]
            if name in calls:
                calls[name].count += 1
            elif len(given) == 1 and is_features(given[0], output):
                calls[name] = Call(len(calls), first_rows(given[0]), first_rows(output))

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        run_model(model, batch)
    return calls


@torch.no_grad()
def record_training(model: nn.Module, batch: Batch) -> dict[str, Call]:
    """Do so in training mode, with all `torch.nn.Dropout` off; leaves the model as it was."""
    dropouts = [each for each in model.modules() if isinstance(each, _DropoutNd)]
    probabilities = [each.p for each in dropouts]
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}  # as of batch normalisation
    try:
        for each in dropouts:
            each.p = 0.0
        with torch.random.fork_rng(), in_mode(model, training=True):
            return record_calls(model, batch)
    finally:
        for each, probability in zip(dropouts, probabilities, strict=True):
            each.p = probability
        for buffer, before in buffers.items():
            buffer.copy_(before)


def is_features(*values: object) -> bool:
    """Whether all are floating-point tensors with an axis of features."""
    return all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 for x in values)


def first_rows(x: Tensor) -> Tensor:
    """Copy the first rows, (T, F): what follows may write where they are."""
    return x.detach().reshape(-1, x.shape[-1])[:NUM_ROWS].clone()
