"""A saved model, rows for it, and the names of what it takes and returns."""

import inspect
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_runtime._hash_router import HashRouter
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._router import Router
from moe_runtime.onnx._bfloat16 import widened, without_bfloat16
from moe_runtime.onnx._folder import read_arrays

# As many as an export is verified with, about.
NUM_ROWS = 512


def load(folder: str) -> PretrainedModule:
    """Build what is in a folder, in evaluation mode."""
    return PretrainedModule.from_pretrained(folder)


def read_inputs(model: PretrainedModule, path: Path) -> dict[str, Tensor]:
    """Read example rows by name, in the order in which the model takes them."""
    if path.suffix == ".npy":
        arrays = {"x": _read_array(path)}
    elif path.suffix == ".npz":
        arrays = read_arrays(path)
    else:
        msg = f"`--inputs` must be a file .npz or .npy, got {path}."
        raise ValueError(msg)
    ordered = _in_order(path, list(arrays), model)
    return {name: _tensor(path, name, arrays[name]) for name in ordered}


def draw_inputs(model: PretrainedModule) -> dict[str, Tensor]:
    """Draw rows for a mixture alone: standard normal, and ids for Hash."""
    if not isinstance(model, MultiGateMixtureOfExperts):
        msg = f"`--inputs` must be given for a {type(model).__name__}: only a mixture's are known."
        raise TypeError(msg)
    generator, dtype = torch.Generator().manual_seed(0), model.experts.dtype
    x = torch.randn(NUM_ROWS, model.experts.in_features, generator=generator).to(dtype)
    routers = [router for router in model.routers if isinstance(router, Router)]
    sizes = [router.num_ids for router in routers if isinstance(router, HashRouter)]
    if sizes:
        ids = torch.randint(min(sizes), (NUM_ROWS,), generator=generator)
        return {"x": x, "router_input": ids}
    widths = {router.in_features for router in routers}
    if widths <= {model.experts.in_features, None}:
        return {"x": x}
    # Where they differ, `forward` says so.
    width = max(width for width in widths if width is not None)
    features = torch.randn(NUM_ROWS, width, generator=generator).to(dtype)
    return {"x": x, "router_input": features}


def output_names(model: PretrainedModule, inputs: dict[str, Tensor]) -> list[str]:
    """Name the outputs as the fields of what the model returns, or number them."""
    # In the form that is exported: a file of arrays cannot hold rows in bfloat16.
    form = without_bfloat16(model)
    with torch.no_grad():
        outputs = form(*(widened(value[:2]) for value in inputs.values()))
    count = 1 if isinstance(outputs, Tensor) else len(outputs)
    return list(getattr(outputs, "_fields", [f"output_{index}" for index in range(count)]))


def _in_order(path: Path, names: list[str], model: PretrainedModule) -> list[str]:
    """Put names in the order of the model's arguments, or say which it has."""
    parameters = inspect.signature(model.forward).parameters
    required = [name for name, each in parameters.items() if each.default is each.empty]
    ordered = [name for name in parameters if name in names]
    # Inputs are exported by position.
    is_gapless = ordered == list(parameters)[: len(ordered)]
    if len(ordered) < len(names) or not set(required) <= set(names) or not is_gapless:
        msg = (
            f"{path} must hold arrays by the names of the model's arguments, {list(parameters)}, "
            f"the first {len(required)} at least and none left out, got {names}."
        )
        raise ValueError(msg)
    return ordered


def _read_array(path: Path) -> NDArray[np.generic]:
    try:
        array = np.load(path)
    except (ValueError, EOFError) as error:
        msg = f"{path} cannot be read as .npy: {error}."
        raise ValueError(msg) from error
    if not isinstance(array, np.ndarray):
        msg = f"{path} must hold one array; it is an .npz under another name."
        raise TypeError(msg)
    return array


def _tensor(path: Path, name: str, array: NDArray[np.generic]) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        msg = f"{path}: {name!r} must hold numbers or booleans, got {array.dtype}."
        raise TypeError(msg) from error
