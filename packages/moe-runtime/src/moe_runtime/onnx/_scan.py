"""Run experts in a loop of the graph: its size does not depend on how many there are.

The weights stay stacked as they were trained, one constant a layer, which ONNX Runtime can map
from the file into memory; it does not pack them, so that many rows take longer than unrolled.

Axes: T rows, D input features, O output features, E experts, P pairs sorted by expert, R pairs of
one expert, M the largest number of pairs that an expert of the batch has (at least 1).
"""

import numpy as np
import onnx_ir as ir

from moe_runtime.onnx._activate import activate
from moe_runtime.onnx._graph import Builder, Contents
from moe_runtime.onnx._pairs import combine, list_pairs


def scan(build: Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents) -> ir.Value:
    """Lower a mixture to standard operators with one Scan over experts: (G, T, O), float32."""
    size = {"num_gates": contents.num_gates, "num_experts": contents.num_experts}
    pairs = list_pairs(build, gates_GTE, **size)
    end_E = build.op("CumSum", pairs.counts_E, build.constant(0))
    start_E = build.op("Sub", end_E, pairs.counts_E)
    # The 1 makes room for a row of zeros, and keeps the largest defined for a batch of no rows.
    counts = build.op("Concat", pairs.counts_E, build.constant([1]), axis=0)
    room = build.op("ReduceMax", counts, keepdims=1)
    stacks = [
        build.stack(stack)
        for layer in contents.layers
        for stack in (layer.weight, layer.bias)
        if stack is not None
    ]
    inputs = [x_TD, pairs.row_P, room, start_E, end_E, *stacks]
    body = _body(contents, prefix=build.name("body"))
    *_, y_EMO = build.ops(
        "Scan", *inputs, num_outputs=4, body=body, num_scan_inputs=2 + len(stacks)
    )
    y_NO = build.op("Reshape", y_EMO, build.constant([-1, contents.out_features]))
    zeros = build.constant(np.zeros((1, contents.out_features)), np.float32)
    nothing = build.op("Mul", room, build.constant([contents.num_experts]))
    # An expert's pairs stand one after the other, from where its part of the outputs begins.
    one = build.constant(1)
    within_ET = build.op("Sub", build.op("CumSum", pairs.mask_ET, one), one)
    expert_E1 = build.constant(np.arange(contents.num_experts)[:, None])
    position_ET = build.op("Add", build.op("Mul", expert_E1, room), within_ET)
    return combine(build, build.op("Concat", y_NO, zeros, axis=0), pairs, position_ET, nothing)


def _body(contents: Contents, *, prefix: str) -> ir.Graph:
    """One expert: its rows, its layers, and zeros up to the room there is, (M, O) float32.

    Takes x, row_P and room, which it hands on as they are: OpenVINO (2026.4) takes no values
    from outside the body. Then start and end of the expert's pairs, and its parameters.
    """
    build = Builder(prefix)
    int64 = ir.DataType.INT64
    x_TD = ir.val(build.name("x"), dtype=contents.dtype, shape=(None, contents.in_features))
    row_P = ir.val(build.name("rows"), dtype=int64, shape=(None,))
    room = ir.val(build.name("room"), dtype=int64, shape=(1,))
    start, end = (ir.val(build.name(name), dtype=int64, shape=()) for name in ("start", "end"))
    inputs = [x_TD, row_P, room, start, end]
    outputs = [_handed_on(build, value) for value in inputs[:3]]
    axis = build.constant([0])
    first, last = (build.op("Unsqueeze", value, axis) for value in (start, end))
    row_R = build.op("Slice", row_P, first, last, axis)
    value = build.op("Gather", x_TD, row_R)
    for layer in contents.layers:
        constants = []
        for stack in (layer.weight, layer.bias):
            if stack is not None:
                shape = stack.array.shape[1:]
                constants.append(ir.val(build.name("stack"), dtype=contents.dtype, shape=shape))
        inputs += constants
        value = build.op("Gemm", value, *constants, transB=1)
        value = activate(build, value, layer.activation, layer.weight.array.shape[1])
    value = build.cast(value, contents.dtype, ir.DataType.FLOAT)
    missing = build.op("Sub", room, build.op("Sub", last, first))
    no_padding = build.constant([0, 0])
    padding = build.op("Concat", no_padding, missing, build.constant([0]), axis=0)
    padded_MO = build.op("Pad", value, padding)
    padded_MO.dtype, padded_MO.shape = ir.DataType.FLOAT, ir.Shape((None, contents.out_features))
    return ir.Graph(
        inputs=inputs,
        outputs=[*outputs, padded_MO],
        nodes=build.tape.nodes,
        initializers=build.tape.initializers,
        name=prefix,
    )


def _handed_on(build: Builder, value: ir.Value) -> ir.Value:
    same = build.op("Identity", value)
    same.type, same.shape = value.type, value.shape
    return same
