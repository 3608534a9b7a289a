"""Facts about an ONNX file: its graph and the sizes of its weights, without loading them."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_runtime._requirements import require
from moe_runtime.onnx._folder import (
    INFO_FILE,
    MODEL_FILE,
    ModelError,
    check_files,
    digests,
    find_model,
    read_info,
)

if TYPE_CHECKING:
    import numpy as np

# What an export writes about its model that the file itself does not hold.
FROM_EXPORT = ("target", "hard", "mixtures", "tolerance", "verification", "versions")
MB = 1e6
# A dtype or a size that the file does not tell; a shape is None.
UNKNOWN = "?"

__all__ = ["INFO_FILE", "ModelError", "read_facts"]


def read_facts(given: str) -> dict[str, Any]:
    """Read what there is to know about a model, as JSON can hold it."""
    path = find_model(given)
    if Path(given).is_dir() and (path.parent / INFO_FILE).exists():
        listed = digests(read_info(path.parent))
        check_files(path.parent, {MODEL_FILE: listed[MODEL_FILE]})
    model = _load(path)
    facts: dict[str, Any] = {
        "path": str(path),
        "opset": {each.domain or "ai.onnx": each.version for each in model.opset_import},
        "inputs": [_described(value) for value in _fed(model.graph)],
        "outputs": [_described(value) for value in model.graph.output],
        "operators": dict(Counter(map(_operator, _nodes(model))).most_common()),
        "weights": _weights(model),
        "files_mb": {each.name: each.stat().st_size / MB for each in _files(path)},
    }
    if Path(given).is_dir() and (path.parent / INFO_FILE).exists():
        info = read_info(path.parent)
        facts |= {name: info[name] for name in FROM_EXPORT if name in info}
    return facts


def _load(path: Path) -> Any:  # noqa: ANN401 - onnx may be missing
    onnx = require("onnx", extra="onnx", purpose="inspect")
    protobuf = require("google.protobuf.message", extra="onnx", purpose="inspect")
    try:
        # Whatever its name ends with.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except protobuf.DecodeError as error:
        msg = f"{path} is damaged or not ONNX: {error}."
        raise ModelError(msg) from error
    # An empty file is a message too, one of nothing.
    if not model.graph.output:
        msg = f"{path} is damaged or not ONNX: it holds no graph with outputs."
        raise ModelError(msg)
    return model


def _nodes(model: Any) -> Iterator[Any]:  # noqa: ANN401 - see `_load`
    """Yield the nodes of the graph, of its functions, and of what loops and branches hold."""
    yield from _inside(model.graph.node)
    for function in model.functions:
        yield from _inside(function.node)


def _inside(nodes: Any) -> Iterator[Any]:  # noqa: ANN401 - see `_load`
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _inside(graph.node)


def _operator(node: Any) -> str:  # noqa: ANN401 - see `_load`
    return f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)


def _fed(graph: Any) -> list[Any]:  # noqa: ANN401 - see `_load`
    """Return the inputs that have to be given."""
    constant = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constant]


def _described(value: Any) -> dict[str, Any]:  # noqa: ANN401 - see `_load`
    kind, tensor = value.type.WhichOneof("value"), value.type.tensor_type
    if kind != "tensor_type" or not tensor.elem_type:
        dtype = (kind or UNKNOWN).removesuffix("_type")
        return {"name": value.name, "dtype": dtype, "shape": None}
    # A scalar has a shape, of no axes.
    shape = [_size(axis) for axis in tensor.shape.dim] if tensor.HasField("shape") else None
    return {"name": value.name, "dtype": _dtype(tensor.elem_type).name, "shape": shape}


def _size(axis: Any) -> int | str:  # noqa: ANN401 - see `_load`
    size: int | str = axis.dim_value if axis.HasField("dim_value") else axis.dim_param or UNKNOWN
    return size


def _dtype(element: int) -> "np.dtype[Any]":
    helper = require("onnx.helper", extra="onnx", purpose="inspect")
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(element)
    return dtype


def _weights(model: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - see `_load`
    """Add up the constants of the graph by dtype, the largest first."""
    numbers: Counter[int] = Counter()
    tensors: Counter[int] = Counter()
    for tensor in model.graph.initializer:
        numbers[tensor.data_type] += math.prod(tensor.dims)
        tensors[tensor.data_type] += 1
    weights = [
        {
            "dtype": _dtype(element).name,
            "tensors": tensors[element],
            "numbers": count,
            "mb": count * _dtype(element).itemsize / MB,
        }
        for element, count in numbers.items()
    ]
    return sorted(weights, key=lambda each: -each["mb"])


def _files(path: Path) -> list[Path]:
    """List the file and what it keeps its weights in."""
    beside = (each for each in path.parent.iterdir() if each.name.startswith(path.name))
    return sorted(each for each in beside if each.is_file())
