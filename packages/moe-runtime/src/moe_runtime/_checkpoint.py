"""Checkpoints that are whole or refused: one safetensors file, written beside and renamed."""

import copy
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_runtime._checks import check_tensor, check_type

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or not the one that the model needs."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors and JSON settings as one file, atomically.

    A process that is killed here leaves the previous checkpoint as it was. The settings
    and a digest of everything are in the header of the safetensors file.

    Parameters
    ----------
    path
        File to write; its folder must exist.
    tensors
        For instance ``model.state_dict()``, or `training_tensors`.
    settings
        Anything that JSON can hold.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the folder of `path` does not exist, or `path` is a folder.
    TypeError, ValueError
        If `tensors` or `settings` cannot be saved. Nothing is written then.
    """
    path = _file_path(path, IsADirectoryError)
    if not path.parent.is_dir():
        msg = f"`path` must be in a folder that exists, got {path}."
        raise FileNotFoundError(msg)
    _check_tensors(tensors)
    settings_json = _to_json({} if settings is None else settings)
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "settings": settings_json,
        "sha256": _digest(held, settings_json),
    }
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # safetensors (0.8) makes files that only their owner can read: give the checkpoint
        # the permissions that the process gives any new file.
        beside.touch()
        permissions = beside.stat().st_mode
        save_file(held, beside, metadata=metadata)
        beside.chmod(permissions)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, altered, or of another format or version.
    """
    path = _file_path(path, CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        msg = f"there is no checkpoint {path}."
        raise CheckpointError(msg) from None
    except (SafetensorError, OSError) as error:
        msg = f"checkpoint {path} is damaged or not a safetensors file: {error}."
        raise CheckpointError(msg) from error
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        msg = (
            f"checkpoint {path} has format version {version}, "
            f"this moe-runtime reads version {FORMAT_VERSION}."
        )
        raise CheckpointError(msg)
    if metadata.get("sha256") != _digest(tensors, metadata.get("settings", "")):
        msg = f"checkpoint {path} is damaged: its contents do not match their digest."
        raise CheckpointError(msg)
    return Checkpoint(tensors, json.loads(metadata["settings"]))


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a module's tensors, refusing missing, extra and wrongly shaped ones by name.

    Raises
    ------
    CheckpointError
        If names or shapes differ; the module is then unchanged.
    """
    _check_tensors(tensors)
    _check_model_fits(module, tensors)
    module.load_state_dict(dict(tensors))


def _check_model_fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        msg = f"the checkpoint does not fit the model: {'; '.join(problems)}."
        raise CheckpointError(msg)


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
    _check_tensors(tensors)
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
    _check_model_fits(model, model_tensors)
    _check_state_fits(optimizer, state)
    load_tensors(model, model_tensors)
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


def _file_path(path: str | os.PathLike[str], refusal: type[Exception]) -> Path:
    check_type("path", path, (str, os.PathLike), "a path")
    # The empty path is the current folder.
    if Path(path).is_dir():
        msg = f"`path` must be a file, got the folder {os.fspath(path)!r}."
        raise refusal(msg)
    return Path(path)


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    if isinstance(tensors, Checkpoint):
        msg = "`tensors` must map names to tensors, got a Checkpoint: pass its `.tensors`."
        raise TypeError(msg)
    check_type("tensors", tensors, Mapping, "a mapping of names to tensors")
    for name, tensor in tensors.items():
        check_type("tensors", name, str, "keyed by strings")
        check_tensor(f"tensors[{name!r}]", tensor)


def _to_json(settings: Mapping[str, Any]) -> str:
    check_type("settings", settings, Mapping, "a mapping")
    try:
        return json.dumps(dict(settings), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"`settings` must be what JSON can hold: {error}."
        raise type(error)(msg) from error


def _digest(tensors: Mapping[str, Tensor], settings_json: str) -> str:
    digest = hashlib.sha256(settings_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
