"""Checkpoints that are whole or refused: one safetensors file, written beside and renamed."""

import hashlib
import json
import os
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
    check_tensors(tensors)
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


def take_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Cast the parameters and buffers of a module to the dtypes of those that it will load."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in tensors and tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a module's tensors, refusing missing, extra and wrongly shaped ones by name.

    Raises
    ------
    CheckpointError
        If names or shapes differ; the module is then unchanged.
    """
    check_tensors(tensors)
    check_model_fits(module, tensors)
    module.load_state_dict(dict(tensors))


def check_model_fits(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not just the module's, naming each that is wrong."""
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


def _file_path(path: str | os.PathLike[str], refusal: type[Exception]) -> Path:
    check_type("path", path, (str, os.PathLike), "a path")
    # The empty path is the current folder.
    if Path(path).is_dir():
        msg = f"`path` must be a file, got the folder {os.fspath(path)!r}."
        raise refusal(msg)
    return Path(path)


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse anything but a mapping of names to tensors."""
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
