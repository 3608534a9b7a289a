"""Compare exported models with the PyTorch model that they came from.

Axes: T rows, D input features, O output features, E experts, G gates.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_runtime._activations import ACTIVATIONS
from moe_runtime.onnx._difference import BATCH_SIZES, Difference, distance
from moe_runtime.onnx._errors import ExportError
from moe_runtime.onnx._graph import Contents, constant_bytes
from moe_runtime.onnx._provider import runtime_errors

# Up to here rows use any number of experts; above, a few each, since all of them take long.
MAX_DENSE_ROWS, FEW_EXPERTS = 33, 2
# A race between threads shows only sometimes: ask more than once, with more than one thread.
NUM_THREADS = 2
NUM_REPEATS = 3
# Weights that are packed a second time would double what an export of a large model needs.
MAX_PACKED_BYTES = 2**28
# Keeps rows of zeros from dividing by 0.
SMALLEST_ROW = 1e-30

Arrays = Mapping[str, NDArray[Any]]


class Case(NamedTuple):
    """A batch, and PyTorch's answers for it."""

    inputs: Arrays
    answers: Arrays


def open_session(
    model: str | os.PathLike[str] | bytes, *, pack: bool = True
) -> ort.InferenceSession:
    """Open a model on the CPU, with a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    if not pack:
        options.add_session_config_entry("session.disable_prepacking", "1")
        # One pattern of memory for each shape that was seen, none of which fits the next batch.
        options.enable_mem_pattern = False
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except runtime_errors() as error:
        msg = f"the exported model cannot be opened by ONNX Runtime {ort.__version__}: {error}"
        raise ExportError(msg) from error


def verify_model(
    path: str | os.PathLike[str], cases: Sequence[Case], *, is_exact: bool, pack: bool = True
) -> dict[str, float]:
    """Largest error of each output over all cases and repeats; see `Verification`."""
    session = open_session(path, pack=pack)
    differences: dict[str, Difference] = {}
    for inputs, wanted in cases:
        for _ in range(NUM_REPEATS):
            found = _answers(session, list(wanted), inputs)
            for (name, answer), output in zip(wanted.items(), found, strict=True):
                differences.setdefault(name, Difference()).add(output, answer)
    return {name: each.error(is_exact=is_exact) for name, each in differences.items()}


def _answers(session: ort.InferenceSession, names: list[str] | None, inputs: Arrays) -> list[Any]:
    try:
        answers: list[Any] = session.run(names, dict(inputs))
    except runtime_errors() as error:
        size = len(next(iter(inputs.values())))
        msg = (
            f"the exported model fails with a batch of {size} rows, where PyTorch answers. A "
            "number of rows that became a constant does so: take it from `x.shape[0]`, not "
            f"`len(x)`, and have the rows first in each input. ONNX Runtime said: {error}"
        )
        raise ExportError(msg) from error
    return answers


def verify_mixture(
    model: ir.Model,
    reference: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]],
    *,
    is_exact: bool = True,
    bounds: Sequence[int] | None = None,
) -> float:
    """Largest error of one mixture alone, for gates that reach every expert.

    Parameters
    ----------
    model
        From x (T, D) and gates (G, T, E) to y (G, T, O).
    reference
        The same in PyTorch, in float64.
    is_exact
        Whether to count the largest difference relative to the largest output; otherwise it is
        that of any row, as a root mean square relative to the row's, or the average row's where
        that is larger.
    bounds
        Most experts of a row in each gate, whose weights are then positive; None for any number
        and either sign.
    """
    x_value, gates_value = model.graph.inputs
    num_gates, _, num_experts = _sizes(gates_value)
    assert x_value.dtype is not None
    generator = np.random.default_rng(0)
    error = 0.0
    with tempfile.TemporaryDirectory() as folder:
        session = _session_of(model, Path(folder))
        for size in (*BATCH_SIZES[:-1], max(BATCH_SIZES[-1], num_experts)):
            x = generator.standard_normal((size, _sizes(x_value)[1]))
            x = x.astype(x_value.dtype.numpy())
            gates = draw_gates(generator, num_gates, size, num_experts, bounds)
            wanted = reference(x, gates)
            for _ in range(NUM_REPEATS):
                answer = _answers(session, None, {"x": x, "gates": gates})[0]
                found = (_worst_number if is_exact else _worst_row)(answer, wanted)
                error = float(np.maximum(error, found))
    return error


def draw_gates(
    generator: np.random.Generator,
    num_gates: int,
    num_rows: int,
    num_experts: int,
    bounds: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Draw gates (G, T, E) from rows without experts to rows with all, or the bound; float32.

    Where there are as many rows as experts, each expert has one.
    """
    shape = (num_gates, num_rows, num_experts)
    gates = generator.standard_normal(shape, dtype=np.float32)
    most = num_experts if num_rows <= MAX_DENSE_ROWS else min(num_experts, 2 * FEW_EXPERTS)
    limit_G = np.full(num_gates, most) if bounds is None else np.minimum(bounds, most)
    count_GT = generator.integers(0, limit_G[:, None], shape[:2], endpoint=True)
    order = generator.random(shape)
    if num_rows >= num_experts:
        each = np.arange(num_experts)
        count_GT[:, each] = np.maximum(count_GT[:, each], 1)
        order[:, each, each] = -1
    is_kept = order.argsort(-1).argsort(-1) < count_GT[..., None]
    return np.where(is_kept, gates if bounds is None else np.abs(gates), np.float32(0))


def reference_of(contents: Contents) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
    """Return the plain definition of a mixture, in float64, one expert after the other."""

    def run_expert(expert: int, x_RD: NDArray[Any]) -> NDArray[Any]:
        value = _float64(x_RD)
        for weight, bias, activation in contents.layers:
            value = value @ _float64(weight.array[expert]).T
            if bias is not None:
                value = value + _float64(bias.array[expert])
            value = ACTIVATIONS[activation](value)
        return value.numpy()

    return lambda x, gates: mix(x, gates, run_expert, contents.out_features)


def _float64(array: NDArray[Any]) -> Tensor:
    """Copy an array, which may be a part of a file that cannot be written to."""
    return torch.from_numpy(array.astype(np.float64))


def mix(
    x_TD: NDArray[Any],
    gates_GTE: NDArray[Any],
    run_expert: Callable[[int, NDArray[Any]], NDArray[Any]],
    out_features: int,
) -> NDArray[Any]:
    """Run each expert on the rows that use it, and add up by row: (G, T, O) float64."""
    mixed = np.zeros((*gates_GTE.shape[:2], out_features))
    for expert in range(gates_GTE.shape[-1]):
        rows = (gates_GTE[:, :, expert] != 0).any(0).nonzero()[0]
        if not rows.size:
            continue
        y_RO = run_expert(expert, x_TD[rows])
        mixed[:, rows] += gates_GTE[:, rows, expert, None] * y_RO
    return mixed


def _worst_number(answer: NDArray[Any], wanted: NDArray[Any]) -> float:
    if answer.shape != wanted.shape:
        return float("inf")
    scale = np.abs(wanted).max(initial=1.0)
    return float((distance(answer, wanted) / scale).max(initial=0.0))


def _worst_row(answer: NDArray[Any], wanted: NDArray[Any]) -> float:
    if answer.shape != wanted.shape:
        return float("inf")
    apart = np.linalg.norm(distance(answer, wanted), axis=-1)
    whole = np.linalg.norm(wanted, axis=-1)
    # A row whose experts cancel is compared with what rows are on average.
    typical = np.sqrt(np.square(whole).mean()) if whole.size else 1.0
    return float((apart / np.maximum(np.maximum(whole, typical), SMALLEST_ROW)).max(initial=0.0))


def _session_of(model: ir.Model, folder: Path) -> ort.InferenceSession:
    """Open a model; a large one through files, which cost no memory of their own."""
    if constant_bytes(model) < MAX_PACKED_BYTES:
        return open_session(ir.to_proto(model).SerializeToString())
    ir.save(model, folder / "mixture.onnx", external_data="mixture.data")
    return open_session(folder / "mixture.onnx", pack=False)


def _sizes(value: ir.Value) -> list[int]:
    """Sizes of the axes; 0 for one that is not fixed."""
    assert value.shape is not None
    return [size if isinstance(size, int) else 0 for size in value.shape]
