"""Compare an exported model with the PyTorch model that it came from."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_runtime._activations import ACTIVATIONS
from moe_runtime.onnx._lower import Contents, mixture_model

# No row, one row, a row for a few experts only, and enough for every expert to have many.
BATCH_SIZES = (0, 1, 2, 7, 33, 700)
# A race between threads shows only sometimes: ask more than once, with more than one thread.
NUM_THREADS = 2
NUM_REPEATS = 3


def open_session(model: str | os.PathLike[str] | bytes) -> ort.InferenceSession:
    """Open a model on the CPU, with a fixed number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    source = model if isinstance(model, bytes) else os.fspath(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def verify_model(
    path: str | os.PathLike[str],
    reference: Callable[..., Sequence[Tensor]],
    example_inputs: Sequence[Tensor],
    output_names: Sequence[str],
) -> dict[str, float]:
    """Largest difference of each output over `BATCH_SIZES`, rows drawn from the examples.

    Absolute where the answer is below 1, relative above.
    """
    session = open_session(path)
    input_names = [value.name for value in session.get_inputs()]
    errors = dict.fromkeys(output_names, 0.0)
    for size in BATCH_SIZES:
        rows = torch.arange(size) % example_inputs[0].shape[0]
        inputs = [example[rows] for example in example_inputs]
        expected = [output.numpy() for output in reference(*inputs)]
        feeds = {name: value.numpy() for name, value in zip(input_names, inputs, strict=True)}
        for _ in range(NUM_REPEATS):
            answers = session.run(list(output_names), feeds)
            for name, answer, wanted in zip(output_names, answers, expected, strict=True):
                error = _difference(answer, wanted, np.maximum(1.0, np.abs(wanted)))
                errors[name] = float(np.maximum(errors[name], error))
    return errors


def verify_mixture(contents: Contents, *, opset: int) -> float:
    """Largest difference of one mixture alone, relative to its largest output.

    The gates are drawn here, so that every expert is reached whatever the router does.
    """
    model = mixture_model(contents, opset=opset)
    session = open_session(ir.to_proto(model).SerializeToString())
    generator = np.random.default_rng(0)
    num_experts, _, in_features = contents.weights[0].shape
    error = 0.0
    for size in BATCH_SIZES:
        x = generator.standard_normal((size, in_features), dtype=np.float32)
        gates = generator.standard_normal((contents.num_gates, size, num_experts), dtype=np.float32)
        share = generator.random((1, size, 1))  # from rows without experts to rows with all
        gates = gates * (generator.random(gates.shape) < share)
        expected = _mixture(x, gates, contents)
        scale = np.abs(expected).max(initial=1.0)
        for _ in range(NUM_REPEATS):
            answer = session.run(None, {"x": x, "gates": gates.astype(np.float32)})[0]
            error = float(np.maximum(error, _difference(answer, expected, scale)))
    return error


def _mixture(x_TD: NDArray[Any], gates_GTE: NDArray[Any], contents: Contents) -> NDArray[Any]:
    """Every expert on every row, in float64: the plain definition of a mixture."""
    outputs = []
    for expert in range(gates_GTE.shape[-1]):
        value = torch.from_numpy(x_TD).double()
        layers = zip(contents.weights, contents.biases, contents.activations, strict=True)
        for weight, bias, activation in layers:
            value = value @ torch.from_numpy(weight[expert]).double().T
            if bias is not None:
                value = value + torch.from_numpy(bias[expert]).double()
            value = ACTIVATIONS[activation](value)
        outputs.append(value.numpy())
    mixed: NDArray[Any] = np.einsum("gte,eto->gto", gates_GTE, np.stack(outputs))
    return mixed


def _difference(answer: NDArray[Any], wanted: NDArray[Any], scale: NDArray[Any]) -> float:
    if answer.shape != wanted.shape:
        return float("inf")
    # In float64: booleans cannot be subtracted, and unsigned integers wrap around.
    answer, wanted = answer.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, which are equal
        difference = np.where(answer == wanted, 0.0, np.abs(answer - wanted) / scale)
    return float(difference.max(initial=0.0))
