"""What each module of a model was given and gave, on a few rows.

Axes: T rows, F features.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_runtime._modes import evaluating

# Enough to tell one function from another, and small beside any model.
NUM_ROWS = 64

Batch = Tensor | tuple[Any, ...] | Mapping[str, Any]


class Call(NamedTuple):
    """The first call of a module with one tensor, which gave one tensor."""

    order: int  # in which the calls ended
    input: Tensor  # (T, F), at most NUM_ROWS rows
    output: Tensor


def run_model(model: nn.Module, batch: Batch) -> Any:  # noqa: ANN401 - whatever the model gives
    """Call the model with keyword arguments, with several inputs, or with one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


@torch.no_grad()
def record_calls(model: nn.Module, batch: Batch) -> dict[str, Call]:
    """Run a model in evaluation mode, and keep the first rows of each module's first call."""
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:  # noqa: ANN401 - a hook, as torch has it
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
            given = [*args, *kwargs.values()]
            if name in calls or len(given) != 1 or not is_features(given[0], output):
                return
            calls[name] = Call(len(calls), first_rows(given[0]), first_rows(output))

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, module in model.named_modules():
            handle = module.register_forward_hook(note(name), with_kwargs=True)
            stack.callback(handle.remove)
        run_model(model, batch)
    return calls


def is_features(*values: object) -> bool:
    """Whether all are floating-point tensors with an axis of features."""
    return all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 for x in values)


def first_rows(x: Tensor) -> Tensor:
    """Copy the first rows, (T, F): what follows may write where they are."""
    return x.detach().reshape(-1, x.shape[-1])[:NUM_ROWS].clone()
