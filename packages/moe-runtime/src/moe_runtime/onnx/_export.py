"""Export a model, verify the file, and only then let it appear under its name."""

import hashlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import moe_runtime
from moe_runtime._checks import check_number, check_tensor, check_type
from moe_runtime._expert_set import ExpertSet
from moe_runtime._experts import Experts
from moe_runtime._mixture import MultiGateMixtureOfExperts
from moe_runtime._packed import PackedExperts
from moe_runtime._router import hard_routing
from moe_runtime.onnx._decided import decided_rows
from moe_runtime.onnx._requirements import require
from moe_runtime.onnx._verification import Verification

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL_FILE = "model.onnx"
INFO_FILE = "model_info.json"
_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


class ExportError(RuntimeError):
    """The exported model was not written, because its answers were not PyTorch's."""


def export(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    folder: str | os.PathLike[str],
    *,
    hard: bool,
    input_names: Sequence[str],
    output_names: Sequence[str],
    tolerance: float = 1e-4,
) -> Verification:
    """Write ``model.onnx`` and ``model_info.json``, verified against PyTorch.

    The model may be any module that contains mixtures of this package; it takes tensors
    and returns a tensor or a sequence of them. The graph holds standard ONNX operators
    only, computes the selected experts only, and takes any number of rows, 0 included.

    Parameters
    ----------
    model
        The model, float32 and on the CPU. It is exported in evaluation mode and left as
        it was.
    example_inputs
        One tensor an input, rows first: at least 2 rows, best a few hundred real ones,
        because the verification draws its rows from them. Rows that rounding alone would
        send to other experts are left out of it, and counted.
    folder
        Where to write; it is created, and a model of that name in it is replaced.
    hard
        Export with hard routing: at most `k` experts for every row.
    input_names, output_names
        Names in the ONNX model, one for each input and output.
    tolerance
        Largest difference between ONNX Runtime and PyTorch that is accepted: absolute
        where the answer is below 1, relative above.

    Returns
    -------
    Verification
        What was compared and the largest differences.

    Raises
    ------
    ExportError
        If the answers differ by more than `tolerance`, or are not numbers: no model is
        written, and one that an earlier export had left is not touched.
    TypeError, ValueError, NotADirectoryError
        If an argument is not what it must be, before anything is written.
    ModuleNotFoundError
        If the ``onnx`` extra is not installed.
    """
    for name in _PACKAGES:
        require(name)
    check_type("hard", hard, bool, "a bool")
    _check_model(model)
    _check_inputs(example_inputs)
    _check_names(input_names, output_names, len(example_inputs))
    check_number("tolerance", tolerance)
    if not tolerance > 0:
        msg = f"`tolerance` must be > 0, got {tolerance!r}."
        raise ValueError(msg)
    check_type("folder", folder, (str, os.PathLike), "a path")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        msg = f"`folder` must be a folder, got the file {folder}."
        raise NotADirectoryError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{MODEL_FILE}.{os.getpid()}.tmp"
    routing = hard_routing(model) if hard else nullcontext()
    info_beside = folder / f".{INFO_FILE}.{os.getpid()}.tmp"
    try:
        with _evaluating(model), routing, torch.no_grad():
            verification, info = _write(
                model, example_inputs, beside, list(input_names), list(output_names)
            )
        if not verification.largest_error <= tolerance:
            msg = (
                f"the exported model differs from PyTorch by {verification.largest_error:.3g}, "
                f"above `tolerance`={tolerance:g}; nothing was written to {folder}. "
                f"Per output: {verification.output_errors}, "
                f"per mixture: {verification.mixture_errors}."
            )
            raise ExportError(msg)
        info |= {"hard": hard, "tolerance": tolerance, "mixtures": _describe(model)}
        info["sha256"] = hashlib.sha256(beside.read_bytes()).hexdigest()
        info_beside.write_text(json.dumps(info, indent=2) + "\n")
        beside.replace(folder / MODEL_FILE)
        info_beside.replace(folder / INFO_FILE)
    finally:
        beside.unlink(missing_ok=True)
        info_beside.unlink(missing_ok=True)
    return verification


def _check_model(model: nn.Module) -> None:
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if any(isinstance(module, PackedExperts) for module in model.modules()):
        msg = "`model` must be exported before `pack_experts`, got one with packed experts."
        raise ValueError(msg)
    wrong = sorted(
        f"{name} is {parameter.dtype} on {parameter.device}"
        for name, parameter in model.named_parameters()
        if parameter.dtype is not torch.float32 or parameter.device.type != "cpu"
    )
    if wrong:
        msg = f"`model` must be float32 and on the CPU to be exported: {'; '.join(wrong)}."
        raise ValueError(msg)
    others = [
        f"{type(module).__name__} as {name!r}"
        for name, module in model.named_modules()
        if isinstance(module, ExpertSet) and not isinstance(module, Experts)
    ]
    if others:
        msg = f"`model` must hold its experts as `Experts` to be exported, got {others}."
        raise ValueError(msg)


def _check_inputs(example_inputs: Sequence[Tensor]) -> None:
    check_type("example_inputs", example_inputs, Sequence, "a sequence of tensors")
    for index, example in enumerate(example_inputs):
        check_tensor(f"example_inputs[{index}]", example)
    rows = [example.shape[0] if example.ndim else 0 for example in example_inputs]
    if not rows or min(rows) < 2 or len(set(rows)) > 1:
        msg = f"`example_inputs` must be tensors with the same number of rows >= 2, got {rows}."
        raise ValueError(msg)


def _check_names(input_names: Sequence[str], output_names: Sequence[str], num_inputs: int) -> None:
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


def _write(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    path: Path,
    input_names: list[str],
    output_names: list[str],
) -> tuple[Verification, dict[str, Any]]:
    import onnx_ir as ir  # noqa: PLC0415 - the extra, see `require`

    from moe_runtime.onnx import _lower, _verify  # noqa: PLC0415

    def reference(*inputs: Tensor) -> Sequence[Tensor]:
        outputs = model(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    count = len(reference(*example_inputs))
    if count != len(output_names):
        msg = f"`output_names` must name each of the {count} outputs, got {output_names}."
        raise ValueError(msg)
    decided = decided_rows(model, example_inputs)
    if not decided.any():
        msg = (
            f"none of the {len(decided)} rows of `example_inputs` can verify the model: rounding "
            f"alone changes which experts each of them uses. Nothing was written to {path.parent}."
        )
        raise ExportError(msg)
    decided_inputs = [example[decided] for example in example_inputs]
    exported = _trace(model, example_inputs, input_names, output_names)
    opset = exported.opset_imports[""]
    mixture_errors = tuple(
        _verify.verify_mixture(_lower.read_mixture(node), opset=opset)
        for node in _lower.mixture_nodes(exported)
    )
    _lower.lower_mixtures(exported)
    ir.save(exported, path)
    output_errors = _verify.verify_model(path, reference, decided_inputs, output_names)
    verification = Verification(
        _verify.BATCH_SIZES, output_errors, mixture_errors, int((~decided).sum())
    )
    return verification, _info(exported, verification)


def _trace(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    input_names: list[str],
    output_names: list[str],
) -> "ir.Model":
    """Export with one opaque node a mixture, which no example input can miss a part of."""
    batch = torch.export.Dim("batch")
    # The exporter logs what torchvision operators it lacks, and torch 2.13 uses its own
    # deprecated functions in it: neither is news to the user.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # Inputs share their number of rows, and so one name for it: as intended.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            program = torch.onnx.export(
                model,
                tuple(example_inputs),
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=tuple({0: batch} for _ in example_inputs),
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _describe(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "gates": [type(router).__name__ for router in module.routers],
            "num_experts": module.experts.num_experts,
            "k": [router.k for router in module.routers],
        }
        for name, module in model.named_modules()
        if isinstance(module, MultiGateMixtureOfExperts)
    ]


def _info(exported: "ir.Model", verification: Verification) -> dict[str, Any]:
    def values(of: Sequence["ir.Value"]) -> list[dict[str, Any]]:
        return [
            {"name": value.name, "dtype": str(value.dtype), "shape": _shape(value)} for value in of
        ]

    versions = {name: require(name).__version__ for name in _PACKAGES}
    versions |= {"moe_runtime": moe_runtime.__version__, "torch": torch.__version__}
    versions |= {"python": platform.python_version()}
    return {
        "inputs": values(exported.graph.inputs),
        "outputs": values(exported.graph.outputs),
        "opset": exported.opset_imports[""],
        "verification": asdict(verification),
        "versions": versions,
    }


def _shape(value: "ir.Value") -> list[int | str]:
    assert value.shape is not None
    return [size if isinstance(size, int) else str(size) for size in value.shape]
