"""Exports to look at: one of a mixture, and small graphs written by hand."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _reference import DIM, make_mixture
from numpy.typing import NDArray

from moe_runtime import hard_routing

OUTPUTS = ["output", "penalty", "weights"]


def export_mixture(folder: Path) -> Path:
    """Export a mixture of five experts, with 40 rows of examples."""
    from moe_runtime.onnx import export  # noqa: PLC0415 - torch is enough for the graphs below
    from moe_runtime.onnx._decided import decided_rows  # noqa: PLC0415

    torch.manual_seed(0)
    model = make_mixture("comet")
    x = torch.randn(60, DIM)
    names = {"input_names": ["x"], "output_names": OUTPUTS}
    export(model, (x,), folder, hard=True, **names)  # type: ignore[arg-type]
    with torch.no_grad(), hard_routing(model):
        x = x[decided_rows(model, (x,))][:40]
        outputs = model(x)
    answers = zip(OUTPUTS, outputs, strict=True)
    write_examples(folder, {"x": x.numpy()}, {name: value.numpy() for name, value in answers})
    return folder


def write_examples(
    folder: Path, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]
) -> None:
    """Write example rows and answers, as an export does."""
    arrays = {f"input.{name}": value for name, value in inputs.items()}
    arrays |= {f"output.{name}": value for name, value in outputs.items()}
    np.savez(folder / "examples.npz", **arrays)  # type: ignore[arg-type]
    sign(folder)


def sign(folder: Path, **changed: Any) -> None:
    """Write the digests of what is in a folder now, and other information."""
    path = folder / "model_info.json"
    info = json.loads(path.read_text()) if path.exists() else {"tolerance": 1e-4}
    digests = {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(folder.iterdir())
        if each != path
    }
    path.write_text(json.dumps(info | {"files": digests} | changed))


def flip_bit(path: Path, position: float) -> None:
    """Damage one bit at a share of a file's length."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def save_graph(
    path: Path, nodes: Sequence[tuple[Any, ...]], inputs: dict[str, Any], outputs: dict[str, Any]
) -> Path:
    """Write a graph: nodes (operator, inputs, output, attributes), and dtype and shape by name."""
    from onnx import TensorProto, checker, helper, numpy_helper, save  # noqa: PLC0415 - the extra

    axes = [numpy_helper.from_array(np.array([value]), f"axis{value}") for value in (0, 1)]
    made = [
        helper.make_node(operator, given, [output], **dict(*attributes))
        for operator, given, output, *attributes in nodes
    ]

    def values(described: dict[str, Any]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, TensorProto.DataType.Value(dtype), shape)
            for name, (dtype, shape) in described.items()
        ]

    graph = helper.make_graph(made, "graph", values(inputs), values(outputs), axes)
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    checker.check_model(model)
    save(model, path)
    return path


def save_scaled(path: Path) -> Path:
    """Write a graph of two inputs: rows of x (batch, 3), each times its integer."""
    nodes = [
        ("Cast", ["ids"], "factors", {"to": 1}),
        ("Unsqueeze", ["factors", "axis1"], "column"),
        ("Mul", ["x", "column"], "y"),
    ]
    inputs = {"x": ("FLOAT", ["batch", 3]), "ids": ("INT64", ["batch"])}
    return save_graph(path, nodes, inputs, {"y": ("FLOAT", ["batch", 3])})


def save_mean(path: Path) -> Path:
    """Write a graph of two outputs: its input (batch, 3), and the mean of the whole batch."""
    nodes = [("Identity", ["x"], "y"), ("ReduceMean", ["x"], "mean", {"keepdims": 0})]
    outputs: dict[str, Any] = {"y": ("FLOAT", ["batch", 3]), "mean": ("FLOAT", [])}
    return save_graph(path, nodes, {"x": ("FLOAT", ["batch", 3])}, outputs)


def save_single(path: Path) -> Path:
    """Write a graph that takes batches of any size, as it says, and fails unless that is 1."""
    nodes = [("Squeeze", ["x", "axis0"], "row"), ("Unsqueeze", ["row", "axis0"], "y")]
    spec = {"x": ("FLOAT", ["batch", 3])}
    return save_graph(path, nodes, spec, {"y": spec["x"]})


def save_gates(path: Path) -> Path:
    """Write a graph whose rows are its output's second axis: (2, batch, 3)."""
    nodes = [
        ("Neg", ["x"], "negative"),
        ("Unsqueeze", ["x", "axis0"], "first"),
        ("Unsqueeze", ["negative", "axis0"], "second"),
        ("Concat", ["first", "second"], "y", {"axis": 0}),
    ]
    inputs = {"x": ("FLOAT", ["batch", 3])}
    return save_graph(path, nodes, inputs, {"y": ("FLOAT", [2, "batch", 3])})
