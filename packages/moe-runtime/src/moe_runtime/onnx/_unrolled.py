"""Run experts one by one: a Gemm a layer and expert, whose weights ONNX Runtime packs once.

Axes: D input features, O output features, E experts, P pairs sorted by expert, R pairs of one.
"""

from collections.abc import Callable

import onnx_ir as ir

from moe_runtime.onnx._activate import activate
from moe_runtime.onnx._graph import Builder, Contents
from moe_runtime.onnx._pairs import Pairs, combine_sorted, list_pairs, split


def unrolled(build: Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents) -> ir.Value:
    """Lower a mixture to standard operators only: output (G, T, O), float32."""

    def run(expert: int, rows_RD: ir.Value) -> ir.Value:
        value = rows_RD
        for weight, bias, activation in contents.layers:
            stacks = [weight] if bias is None else [weight, bias]
            constants = [build.expert(stack, expert) for stack in stacks]
            value = build.op("Gemm", value, *constants, transB=1)
            value = activate(build, value, activation, weight.array.shape[1])
        return build.cast(value, contents.dtype, ir.DataType.FLOAT)

    size = {"num_gates": contents.num_gates, "num_experts": contents.num_experts}
    pairs = list_pairs(build, gates_GTE, **size)
    return run_one_by_one(build, x_TD, pairs, contents.out_features, run)


def run_one_by_one(
    build: Builder,
    x_TD: ir.Value,
    pairs: Pairs,
    out_features: int,
    run: Callable[[int, ir.Value], ir.Value],
) -> ir.Value:
    """Give each expert its rows, (R, D) to (R, O) float32, and combine: (G, T, O)."""
    rows_PD = build.op("Gather", x_TD, pairs.row_P)
    blocks = split(build, rows_PD, pairs)
    outputs = [run(expert, block) for expert, block in enumerate(blocks)]
    return combine_sorted(build, outputs, pairs, out_features)
