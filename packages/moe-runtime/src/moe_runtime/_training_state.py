"""A model and its optimiser as one set of tensors, so that training continues to the bit."""

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moe_runtime._checkpoint import CheckpointError, check_model_fits, check_tensors


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collect a model's and its optimiser's tensors under one set of names."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                msg = (
                    f"`optimizer` must keep its state in tensors, got {value!r} as {name!r} of "
                    f"{type(optimizer).__name__}."
                )
                raise TypeError(msg)
            tensors[f"optimizer.{index}.{name}"] = value
    return tensors


def load_training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `training_tensors` collected; learning rates stay as constructed.

    What an optimizer keeps of a parameter is found by stepping a copy of it once, on zeros
    of that parameter's shape. A parameter may have no state: it has not been stepped yet.

    Raises
    ------
    CheckpointError
        If the model's tensors do not fit it, or the optimizer would not keep just these
        tensors in these shapes; model and optimizer are then unchanged.
    """
    check_tensors(tensors)
    prefix = "model."
    model_tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    state: dict[int, dict[str, Tensor]] = {}
    num_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            continue
        owner, index, key = [*name.split(".", 2), "", ""][:3]
        if owner != "optimizer" or not index.isdecimal() or int(index) >= num_parameters:
            msg = (
                f"the checkpoint does not fit the optimizer: {name} belongs to none of its "
                f"{num_parameters} parameters."
            )
            raise CheckpointError(msg)
        state.setdefault(int(index), {})[key] = tensor
    check_model_fits(model, model_tensors)
    _check_state_fits(optimizer, state)
    model.load_state_dict(model_tensors)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _check_state_fits(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Tensor]]
) -> None:
    owners = [(group, each) for group in optimizer.param_groups for each in group["params"]]
    problems = []
    for index, offered in sorted(state.items()):
        wanted = _kept_state(optimizer, *owners[index])
        if offered.keys() != wanted.keys():
            problems.append(
                f"optimizer.{index} holds {sorted(offered)}, "
                f"{type(optimizer).__name__} keeps {sorted(wanted)}"
            )
            continue
        problems += [
            f"optimizer.{index}.{key} has shape {tuple(tensor.shape)}, "
            f"{type(optimizer).__name__} keeps {tuple(wanted[key].shape)}"
            for key, tensor in offered.items()
            if tensor.shape != wanted[key].shape
        ]
    if problems:
        msg = f"the checkpoint does not fit the optimizer: {'; '.join(problems)}."
        raise CheckpointError(msg)


def _kept_state(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> dict[str, Tensor]:
    """Return what the optimizer keeps of a parameter after its first step."""
    stand_in = nn.Parameter(torch.zeros_like(parameter))
    stand_in.grad = torch.zeros_like(parameter)
    # As pickle copies it: with its options, without the hooks and a scheduler's wrapper.
    fresh = copy.copy(optimizer)
    fresh.state = defaultdict(dict)
    fresh.param_groups = [{**group, "params": [stand_in]}]
    fresh.step()
    return dict(fresh.state[stand_in])
