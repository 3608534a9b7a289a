"""From a PyTorch model to an ONNX graph with one opaque node a mixture."""

import ast
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass
from torch import Tensor, nn
from torch.export import Dim

from moe_runtime.onnx._graph import DOMAIN
from moe_runtime.onnx._reshapes import close_reshapes
from moe_runtime.onnx._transposes import delay_transposes

Shapes = Mapping[int, Dim] | list[dict[int, Dim]]

BATCH = "batch"  # what the number of rows is called
# Where torch.onnx notes which module a node belongs to, as a list in Python's notation.
SCOPES = "pkg.torch.onnx.name_scopes"
# Initializers below it stay as they are: a cast would take more room than it saves.
MIN_BFLOAT16_ELEMENTS = 1024
BFLOAT16_BITS = 16


def trace(
    model: nn.Module,
    example_inputs: Sequence[Tensor | list[Tensor]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[Shapes],
) -> ir.Model:
    """Export with opaque nodes, which no example input can miss a part of.

    Each knows the name of its mixture; nothing else of where the code stands is kept.
    """
    with _quiet():
        program = torch.onnx.export(
            model,
            tuple(example_inputs),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=_as_taken(model, dynamic_shapes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    traced: ir.Model = program.model
    for node in traced.graph.all_nodes():
        if node.domain == DOMAIN:
            scopes = ast.literal_eval(node.metadata_props[SCOPES])
            node.attributes.add(ir.AttrString("name", scopes[-2]))
        # Among them the paths of the user's files.
        node.metadata_props.clear()
    _forget(traced)
    # The exporter (torch 2.13) gives an output its name even where a value inside has it.
    NameFixPass()(traced)
    close_reshapes(traced.graph)
    delay_transposes(traced.graph)
    return traced


def _as_taken(model: nn.Module, of_inputs: Sequence[Shapes]) -> tuple[object, ...]:
    """Put together what belongs to inputs that ``forward(self, *inputs)`` takes as one tuple."""
    kinds = [each.kind for each in inspect.signature(model.forward).parameters.values()]
    together = Parameter.VAR_POSITIONAL
    alone = kinds.index(together) if together in kinds else len(of_inputs)
    if len(of_inputs) <= alone:
        return tuple(of_inputs)
    return (*of_inputs[:alone], tuple(of_inputs[alone:]))


def _forget(model: ir.Model) -> None:
    """Drop what the exporter noted for people who debug it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *values):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is no news to the user from being said."""
    # The exporter logs what torchvision operators it lacks, and torch 2.13 uses its own
    # deprecated functions in it.
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            # Inputs share their number of rows, and so one name for it: as intended.
            warnings.filterwarnings("ignore", "# The axis name", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def store_bfloat16(model: ir.Model) -> None:
    """Store large float32 constants that are bfloat16 numbers as such; loading casts them."""
    import ml_dtypes  # noqa: PLC0415 - comes with onnx_ir

    graph = model.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        array = tensor.numpy()
        if array.size < MIN_BFLOAT16_ELEMENTS or (array.view("uint32") & 0xFFFF).any():
            continue
        assert value.name is not None
        stored = ir.val(
            f"{value.name}/bfloat16", dtype=ir.DataType.BFLOAT16, shape=tuple(array.shape)
        )
        stored.const_value = ir.tensor(array.astype(ml_dtypes.bfloat16), name=stored.name)
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/cast")
        wide = cast.outputs[0]
        wide.name, wide.dtype, wide.shape = f"{value.name}/float32", tensor.dtype, value.shape
        graph.register_initializer(stored)
        graph.insert_before(next(iter(graph)), cast)
        ir.convenience.replace_all_uses_with(value, wide)
        graph.initializers.pop(value.name)
