"""A whole training run as one set of tensors, so that it continues to the bit."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moe_runtime._checkpoint import CheckpointError, check_model_fits, check_tensors
from moe_runtime._checks import check_type

OWNERS = ("model", "optimizer")
# Numbers become tensors that hold them exactly, and whose dtype says what they were.
NUMBER_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


class Stateful(Protocol):
    """What a training run can have beside model and optimizer.

    A `PermutationSearch`, a learning-rate scheduler, a ``torch.amp.GradScaler``, a module.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and numbers, in nested dicts and lists; text and None are settings."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take back such a state, or raise an error that says why not."""
        ...


def training_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    others: Mapping[str, Stateful] | None = None,
) -> dict[str, Tensor]:
    """Collect the state of a training run under one set of names.

    Parameters
    ----------
    model
        Its ``state_dict``, as ``model.*``.
    optimizer
        Its state as ``optimizer.*``, numbers of its groups (learning rates) included.
    others
        What else has a state, by the names that it gets: schedulers, searches, a GradScaler.
        Numbers become tensors of int64, float64 or bool, exactly.

    Raises
    ------
    TypeError
        If the optimizer's state or another's holds what is neither; it is named.
    ValueError
        If one of `others` is called ``model`` or ``optimizer``, or has a dot in its name.

    Examples
    --------
    >>> import torch, moe_runtime
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    >>> tensors = moe_runtime.training_tensors(model, optimizer, {"scheduler": scheduler})
    >>> tensors["scheduler.last_epoch"], tensors["optimizer.group.0.lr"].item()
    (tensor(0), 0.5)
    >>> moe_runtime.load_training_tensors(model, optimizer, tensors, {"scheduler": scheduler})
    """
    others = _checked_others(others)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            if not isinstance(value, Tensor):
                msg = (
                    f"`optimizer` must keep its state in tensors, got {value!r} as {name!r} of "
                    f"{type(optimizer).__name__}."
                )
                raise TypeError(msg)
            tensors[f"optimizer.{index}.{name}"] = value
    tensors |= _flat_groups(state["param_groups"])
    for name, other in others.items():
        tensors |= dict(_flat(name, other.state_dict()))
    return tensors


def load_training_tensors(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    others: Mapping[str, Stateful] | None = None,
) -> None:
    """Put back what `training_tensors` collected; learning rates are those of the checkpoint.

    What an optimizer keeps of a parameter is found by stepping a copy of it once, on zeros
    of that parameter's shape. A parameter may have no state: it has not been stepped yet. Of
    its groups' options, those that it has and the checkpoint has are put back.

    Raises
    ------
    CheckpointError
        If the model's tensors do not fit it, the optimizer would not keep just these
        tensors in these shapes, or one of `others` has other names in its state or refuses it.
        Everything is then as it was.
    """
    check_tensors(tensors)
    others = _checked_others(others)
    by_owner: dict[str, dict[str, Tensor]] = {name: {} for name in (*OWNERS, *others)}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        if owner not in by_owner or not rest:
            msg = f"the checkpoint does not fit: {name} belongs to none of {list(by_owner)}."
            raise CheckpointError(msg)
        by_owner[owner][rest] = tensor
    check_model_fits(model, by_owner["model"])
    optimizer_state = _optimizer_state(optimizer, by_owner["optimizer"])
    states = {name: _other_state(name, each, by_owner[name]) for name, each in others.items()}
    _load_others(others, states)
    model.load_state_dict(by_owner["model"])
    optimizer.load_state_dict(optimizer_state)


def _checked_others(others: Mapping[str, Stateful] | None) -> Mapping[str, Stateful]:
    if others is None:
        return {}
    check_type("others", others, Mapping, "a mapping of names to what has a state")
    for name, each in others.items():
        check_type("others", name, str, "keyed by strings")
        if not name or name in OWNERS or "." in name:
            msg = f"`others` must have names without a dot, other than {OWNERS}, got {name!r}."
            raise ValueError(msg)
        if not hasattr(each, "state_dict") or not hasattr(each, "load_state_dict"):
            msg = (
                f"`others[{name!r}]` must have `state_dict` and `load_state_dict`, "
                f"got {type(each).__name__}."
            )
            raise TypeError(msg)
    return others


def _flat(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Name each tensor and number in a state."""
    if isinstance(value, Tensor):
        yield name, value
    elif type(value) in NUMBER_DTYPES:
        yield name, torch.tensor(value, dtype=NUMBER_DTYPES[type(value)])
    elif isinstance(value, (Mapping, list, tuple)):
        for key, each in _items(value):
            yield from _flat(f"{name}.{key}", each)
    elif value is not None and not isinstance(value, str):
        msg = f"the state of {name} must be a tensor or a number, got {type(value).__name__}."
        raise TypeError(msg)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - a mapping or a list
    return iter(value.items()) if isinstance(value, Mapping) else enumerate(value)


def _unflat(name: str, like: object, tensors: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """Return a state like the one that is there now, with the values of `tensors`."""
    if isinstance(like, Mapping):
        # A copy keeps the kind: the milestones of MultiStepLR are a Counter.
        filled: Any = copy.copy(like)
        for key, each in like.items():
            filled[key] = _unflat(f"{name}.{key}", each, tensors)
        return filled
    if isinstance(like, (list, tuple)):
        items = [_unflat(f"{name}.{key}", each, tensors) for key, each in enumerate(like)]
        return tuple(items) if isinstance(like, tuple) else items
    if name not in tensors:
        return like
    tensor = tensors[name]
    if isinstance(like, Tensor):
        return tensor
    if tensor.ndim or tensor.dtype not in NUMBER_DTYPES.values():
        msg = (
            f"the checkpoint does not fit: {name} is a number, "
            f"not a {tensor.dtype} of shape {tuple(tensor.shape)}."
        )
        raise CheckpointError(msg)
    return tensor.item()


def _flat_groups(groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Name the numbers of the parameter groups, without the parameters' own."""
    options = [{key: each for key, each in group.items() if key != "params"} for group in groups]
    return dict(_flat("optimizer.group", options))


def _other_state(name: str, other: Stateful, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state to load, if its names are those of the state that is there now."""
    like = other.state_dict()
    wanted = {each.removeprefix(f"{name}.") for each, _ in _flat(name, like)}
    problems = [f"{name}.{each} is missing" for each in sorted(wanted - tensors.keys())]
    problems += [
        f"{name}.{each} is not part of {type(other).__name__}"
        for each in sorted(tensors.keys() - wanted)
    ]
    if problems:
        msg = f"the checkpoint does not fit `{name}`: {'; '.join(problems)}."
        raise CheckpointError(msg)
    state: dict[str, Any] = _unflat(
        name, like, {f"{name}.{each}": tensor for each, tensor in tensors.items()}
    )
    return state


def _load_others(others: Mapping[str, Stateful], states: Mapping[str, dict[str, Any]]) -> None:
    """Load all, or none: what refuses its state leaves the others as they were."""
    before = {name: copy.deepcopy(each.state_dict()) for name, each in others.items()}
    for name, each in others.items():
        try:
            each.load_state_dict(states[name])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            for known, state in before.items():
                others[known].load_state_dict(state)
            msg = f"the checkpoint does not fit `{name}`: {error}"
            raise CheckpointError(msg) from error


def _optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return what the optimizer is to load, if it is what the optimizer keeps."""
    num_parameters = sum(len(group["params"]) for group in optimizer.param_groups)
    state: dict[int, dict[str, Tensor]] = {}
    options: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if index == "group":
            options[f"optimizer.{name}"] = tensor
        elif index.isdecimal() and int(index) < num_parameters:
            # PyTorch's optimizers would go on in the caller's own tensor.
            state.setdefault(int(index), {})[key] = tensor.clone()
        else:
            msg = (
                f"the checkpoint does not fit the optimizer: optimizer.{name} belongs to none of "
                f"its {num_parameters} parameters."
            )
            raise CheckpointError(msg)
    _check_state_fits(optimizer, state)
    groups = optimizer.state_dict()["param_groups"]
    return {"state": state, "param_groups": _with_options(groups, options)}


def _with_options(groups: list[dict[str, Any]], options: Mapping[str, Tensor]) -> Any:  # noqa: ANN401
    """Put the numbers of the checkpoint into the groups."""
    numbers = dict(_flat_groups(groups))
    known = {name: tensor for name, tensor in options.items() if name in numbers}
    return [
        {
            key: each if key == "params" else _unflat(f"optimizer.group.{index}.{key}", each, known)
            for key, each in group.items()
        }
        for index, group in enumerate(groups)
    ]


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
