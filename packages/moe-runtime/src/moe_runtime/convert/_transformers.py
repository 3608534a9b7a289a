"""Converted models of transformers, saved and loaded as that library has it."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from moe_runtime._checkpoint import CheckpointError, take_dtypes
from moe_runtime._checks import check_type
from moe_runtime._requirements import require
from moe_runtime.convert._settings import CONFIG_KEY, convert_like

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"


def from_pretrained(
    folder: str | os.PathLike[str], model_class: type[Any] | None = None
) -> nn.Module:
    """Load a converted model that its own ``save_pretrained(folder)`` wrote.

    Needs the extra: ``pip install "moe-runtime[hf]"``.

    Parameters
    ----------
    folder
        With ``config.json``, which says how the model was converted, and safetensors files.
    model_class
        A class of transformers, such as ``BertForMaskedLM``; the one that was saved by default.

    Returns
    -------
    torch.nn.Module
        A model of that class, in the dtype that was saved, on the CPU, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the folder holds no converted model, or its weights do not fit: what is wrong is named.
    ModuleNotFoundError
        If the extra is not installed.
    """
    check_type("folder", folder, (str, os.PathLike), "a path")
    transformers = require("transformers", extra="hf", purpose="from_pretrained")
    path = Path(folder)
    if not (path / "config.json").is_file():
        msg = f"{path} holds no config.json: it must be a folder that save_pretrained wrote."
        raise CheckpointError(msg)
    config = transformers.AutoConfig.from_pretrained(path)
    settings = getattr(config, CONFIG_KEY, None)
    if settings is None:
        msg = f"{path / 'config.json'} has no {CONFIG_KEY!r}: the model was not converted."
        raise CheckpointError(msg)
    if model_class is None:
        model_class = getattr(transformers, (config.architectures or ["?"])[0], None)
        if model_class is None:
            msg = f"`model_class` must be given: transformers has no {config.architectures}."
            raise CheckpointError(msg)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = model_class(config)
        convert_like(model, settings)
    _load(model, _stored_tensors(path), path)
    if (path / GENERATION).is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(path)
    return model.eval()


def _stored_tensors(path: Path) -> dict[str, Tensor]:
    """Read one file of weights, or those that an index lists."""
    files = [WEIGHTS]
    if (path / INDEX).is_file():
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for name in files:
        try:
            tensors |= load_file(path / name)
        except (OSError, SafetensorError) as error:
            msg = f"{path / name} cannot be read: {error}"
            raise CheckpointError(msg) from error
    return tensors


def _load(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all tensors; one that is missing must share its memory with one that is not."""
    # Buffers that are not stored keep the precision that they are computed in.
    take_dtypes(model, tensors)
    try:
        problems = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        msg = f"{path} does not fit the model: {error}"
        raise CheckpointError(msg) from error
    own = model.state_dict()
    loaded = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for name in problems.missing_keys if own[name].data_ptr() not in loaded]
    if missing or problems.unexpected_keys:
        msg = (
            f"{path} does not fit the model: {missing} are missing, "
            f"{problems.unexpected_keys} are unknown."
        )
        raise CheckpointError(msg)
