"""Checks of what `export` is given, before anything is traced or written."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_runtime._checks import check_number, check_tensor, check_type
from moe_runtime._experts import StackedLinear
from moe_runtime._packed import PackedExperts
from moe_runtime.onnx._requirements import require
from moe_runtime.onnx._targets import TARGETS

PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STACK = {"weight", "bias"}


def check_extra() -> None:
    """Say how to install the extra where it is missing."""
    for name in PACKAGES:
        require(name)


def check_target(target: object) -> None:
    """Refuse a target that there is not."""
    if target not in TARGETS:
        msg = f"`target` must be one of {list(TARGETS)}, got {target!r}."
        raise ValueError(msg)


def check_tolerance(tolerance: float | None) -> None:
    """Refuse what no error can be compared with."""
    if tolerance is None:
        return
    check_number("tolerance", tolerance)
    if not tolerance > 0:
        msg = f"`tolerance` must be > 0, got {tolerance!r}."
        raise ValueError(msg)


def checked_folder(name: str, folder: str | os.PathLike[str]) -> Path:
    """Return a path that is a folder or nothing yet."""
    check_type(name, folder, (str, os.PathLike), "a path")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        msg = f"`{name}` must be a folder, got the file {path}."
        raise NotADirectoryError(msg)
    return path


def check_model(model: nn.Module) -> None:
    """Refuse models that have no ONNX form, or not as they are."""
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if any(isinstance(module, PackedExperts) for module in model.modules()):
        msg = "`model` must be exported before `pack_experts`, got one with packed experts."
        raise ValueError(msg)
    _check_experts(model)
    wrong = sorted(
        f"{name} is {parameter.dtype} on {parameter.device}"
        for name, parameter in model.named_parameters()
        if parameter.dtype not in DTYPES or parameter.device.type != "cpu"
    )
    if wrong:
        msg = (
            "`model` must be float32, float16 or bfloat16 and on the CPU to be exported: "
            f"{'; '.join(wrong)}."
        )
        raise ValueError(msg)


def _check_experts(model: nn.Module) -> None:
    """Refuse experts that compute with something else than their parameters, which are exported."""
    for name, module in model.named_modules():
        if not isinstance(module, StackedLinear):
            continue
        parameters = [each for each, _ in module.named_parameters()]
        if not {"weight"} <= {*parameters} <= STACK:
            msg = (
                f"`model` must have experts whose weights are parameters, {name!r} has "
                f"{parameters}: call `torch.nn.utils.prune.remove` or "
                "`torch.nn.utils.parametrize.remove_parametrizations` first."
            )
            raise ValueError(msg)


def check_inputs(example_inputs: Sequence[Tensor]) -> None:
    """Refuse anything but tensors with one number of rows, at least 2."""
    check_type("example_inputs", example_inputs, Sequence, "a sequence of tensors")
    for index, example in enumerate(example_inputs):
        check_tensor(f"example_inputs[{index}]", example)
    rows = [example.shape[0] if example.ndim else 0 for example in example_inputs]
    if not rows or min(rows) < 2 or len(set(rows)) > 1:
        msg = f"`example_inputs` must be tensors with the same number of rows >= 2, got {rows}."
        raise ValueError(msg)


def check_names(input_names: Sequence[str], output_names: Sequence[str], num_inputs: int) -> None:
    """Refuse names that are missing, empty or not unique."""
    for argument, names in (("input_names", input_names), ("output_names", output_names)):
        check_type(argument, names, Sequence, "a sequence of strings")
        # A string is a sequence of strings too, but never the names that were meant.
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            msg = f"`{argument}` must be a sequence of strings, got {names!r}."
            raise TypeError(msg)
    if len(input_names) != num_inputs:
        msg = (
            f"`input_names` must name each of the {num_inputs} `example_inputs`, "
            f"got {list(input_names)}."
        )
        raise ValueError(msg)
    every = [*input_names, *output_names]
    if "" in every or len(set(every)) < len(every):
        msg = (
            "`input_names` and `output_names` must be all different and not empty, "
            f"got {list(input_names)} and {list(output_names)}."
        )
        raise ValueError(msg)


def check_dynamic_axes(
    dynamic_axes: Mapping[str, Mapping[int, str]] | None,
    input_names: Sequence[str],
    example_inputs: Sequence[Tensor],
) -> None:
    """Refuse axes that no input has, and other names for the rows."""
    if dynamic_axes is None:
        return
    check_type("dynamic_axes", dynamic_axes, Mapping, "a mapping from inputs to axes")
    examples = dict(zip(input_names, example_inputs, strict=True))
    for name, axes in dynamic_axes.items():
        if name not in examples:
            msg = f"`dynamic_axes` must name inputs of {list(examples)}, got {name!r}."
            raise ValueError(msg)
        check_type(f"dynamic_axes[{name!r}]", axes, Mapping, "a mapping from axes to names")
        for axis, label in axes.items():
            highest = examples[name].ndim - 1
            if axis not in range(1, highest + 1) or not label.isidentifier() or label == "batch":
                msg = (
                    f"`dynamic_axes[{name!r}]` must map axes from 1 to {highest} to names other "
                    f"than 'batch', got {axis!r}: {label!r}."
                )
                raise ValueError(msg)
