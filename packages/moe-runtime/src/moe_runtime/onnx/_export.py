"""Export a model for a target, and lower an export again for another one."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from moe_runtime._checks import check_type
from moe_runtime.onnx import _arguments
from moe_runtime.onnx._verification import Verification


def export(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    folder: str | os.PathLike[str],
    *,
    hard: bool,
    input_names: Sequence[str],
    output_names: Sequence[str],
    target: str = "unrolled",
    tolerance: float | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    canonical: bool = False,
) -> Verification:
    """Write ``model.onnx``, verified against PyTorch, and what is known of it.

    The model may be any module that contains mixtures of this package, wherever they are; it
    takes tensors and returns a tensor or a sequence of them. The graph computes the
    selected experts only, and takes any number of rows, 0 included.

    Beside the model there are ``model_info.json`` (names, dtypes, gates, bounds, versions, errors,
    digests) and ``examples.npz``, example rows with PyTorch's answers, by which it can
    be verified again elsewhere. Weights of 256 MiB and more are in ``model.onnx.data``.

    Parameters
    ----------
    model
        The model, on the CPU, in float32, float16 or bfloat16. It is exported in evaluation
        mode and left as it was, but for attributes that its forward pass assigns. Weights in
        bfloat16 are stored as such, and computed with in float32, as are inputs and outputs:
        ONNX Runtime has no products of bfloat16 on the CPU. It is then verified against PyTorch
        in float32, with the same weights.
    example_inputs
        One tensor an input, rows first: at least 2 rows, best a few hundred real ones,
        because the verification draws its rows from them. Rows that rounding alone would
        send to other experts are left out of it, and counted.
    folder
        Where to write; it is created, and an export that is in it is replaced.
    hard
        Export with hard routing: at most `k` experts for every row. The answer says what that
        changes on the example rows.
    input_names, output_names
        Names in the ONNX model, one for each input and output.
    target
        How experts run. ``"unrolled"``: standard operators, a product for each expert; the
        fastest. ``"scan"``: standard operators, a loop, so that the graph's size does not depend
        on the number of experts, and weights can stay in the mapped file. ``"onnxruntime"``: the
        operator com.microsoft.MoE. ``"int8"``: weights and inputs of experts as 8-bit integers,
        on ONNX Runtime's CPU. ``"qmoe"``: the same by the operator com.microsoft.QMoE, which is
        ahead where rows are few.
    tolerance
        Largest error that is accepted, as `Verification` counts it: by default 1e-4, with
        float16 weights 1e-2, and for ``"int8"`` and ``"qmoe"`` 0.05.
    dynamic_axes
        Axes besides the rows that may have any size, and their names, by input:
        ``{"tokens": {1: "sequence"}}``.
    canonical
        Also write ``canonical.onnx``, from which `lower` makes the other targets.

    Returns
    -------
    Verification
        What was compared and the largest errors.

    Raises
    ------
    ExportError
        If the answers differ by more than `tolerance`, or are not numbers: no model is
        written, and one that an earlier export had left is not touched.
    TargetError
        If the target cannot run one of the mixtures; it is named, with the reason.
    TypeError, ValueError, NotADirectoryError
        If an argument is not what it must be, before anything is written.
    ModuleNotFoundError
        If the ``onnx`` extra is not installed.
    """
    _arguments.check_extra()
    check_type("hard", hard, bool, "a bool")
    check_type("canonical", canonical, bool, "a bool")
    _arguments.check_target(target)
    _arguments.check_model(model)
    _arguments.check_inputs(example_inputs)
    _arguments.check_names(input_names, output_names, len(example_inputs))
    _arguments.check_tolerance(tolerance)
    _arguments.check_dynamic_axes(dynamic_axes, input_names, example_inputs)
    path = _arguments.checked_folder("folder", folder)

    from moe_runtime.onnx._write import Request, write_export  # noqa: PLC0415 - the extra

    names = tuple(input_names), tuple(output_names)
    request = Request(*names, target, tolerance, dynamic_axes or {}, hard, canonical)
    return write_export(model, example_inputs, path, request)


def lower(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    target: str,
    tolerance: float | None = None,
) -> Verification:
    """Make another target of an export, without the PyTorch model that it came from.

    Parameters
    ----------
    source
        Folder of an export with `canonical`.
    folder
        Where to write; it is created, and an export that is in it is replaced.
    target, tolerance
        As for `export`.

    Returns
    -------
    Verification
        What was compared with PyTorch's answers, which the export has kept, and the largest
        errors.

    Raises
    ------
    ExportError
        If the answers differ by more than `tolerance`: nothing is written.
    TargetError
        If the target cannot run one of the mixtures; it is named, with the reason.
    ModelError, NotADirectoryError
        If `source` is no such export, or one of its files is missing or damaged.
    """
    _arguments.check_extra()
    _arguments.check_target(target)
    _arguments.check_tolerance(tolerance)
    check_type("source", source, (str, os.PathLike), "a path")
    path = _arguments.checked_folder("folder", folder)
    if path.resolve() == Path(source).resolve():
        msg = f"`folder` must be another one than `source`, which would be lost, got {path}."
        raise ValueError(msg)

    from moe_runtime.onnx._relower import write_lowered  # noqa: PLC0415 - the extra

    return write_lowered(source, path, target=target, tolerance=tolerance)
