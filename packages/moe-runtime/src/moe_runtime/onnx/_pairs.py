"""The (row, expert) pairs of a mixture in ONNX operators: list them, and add up what they give.

Nothing is scattered: ScatterND with additions is a data race in ONNX Runtime (1.32) on the CPU.
Rows and outputs are found by index arithmetic on running counts instead.

Axes: T rows, D input features, O output features, E experts, G gates, P pairs sorted by expert,
M the largest number of pairs that a row of the batch has (at least 1).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from moe_runtime.onnx._graph import Builder


class Pairs(NamedTuple):
    """The pairs with a non-zero weight in some gate."""

    num_gates: int
    num_experts: int
    gates_GTE: ir.Value  # float32
    mask_TE: ir.Value  # int64, 1 where a pair is
    mask_ET: ir.Value
    counts_E: ir.Value  # int64
    expert_P: ir.Value  # int64
    row_P: ir.Value  # int64


def list_pairs(build: Builder, gates_GTE: ir.Value, *, num_gates: int, num_experts: int) -> Pairs:
    """List the pairs, sorted by expert."""
    zero = build.constant(0, np.float32)
    active_GTE = build.op("Not", build.op("Equal", gates_GTE, zero))
    counts_GTE = build.op("Cast", active_GTE, to=int(ir.DataType.INT64))
    mask_TE = build.op("ReduceMax", counts_GTE, build.constant([0]), keepdims=0)
    mask_ET = build.op("Transpose", mask_TE)
    counts_E = build.op("ReduceSum", mask_ET, build.constant([1]), keepdims=0)
    both = build.op("NonZero", mask_ET)
    expert_P, row_P = (build.op("Gather", both, build.constant(part)) for part in (0, 1))
    return Pairs(num_gates, num_experts, gates_GTE, mask_TE, mask_ET, counts_E, expert_P, row_P)


def positions(build: Builder, pairs: Pairs) -> ir.Value:
    """Where each pair stands in the order by expert, (E, T); anything where there is no pair."""
    flat = build.op("Reshape", pairs.mask_ET, build.constant([-1]))
    running = build.op("CumSum", flat, build.constant(0))
    by_expert = build.constant([pairs.num_experts, -1])
    return build.op("Reshape", build.op("Sub", running, build.constant(1)), by_expert)


def split(build: Builder, rows_PD: ir.Value, pairs: Pairs) -> Sequence[ir.Value]:
    """Split rows that are sorted by expert."""
    return build.ops("Split", rows_PD, pairs.counts_E, num_outputs=pairs.num_experts, axis=0)


def combine_sorted(
    build: Builder, blocks: Sequence[ir.Value], pairs: Pairs, out_features: int
) -> ir.Value:
    """Combine blocks of outputs (R, O), float32, in the order by expert: (G, T, O)."""
    zeros = build.constant(np.zeros((1, out_features)), np.float32)
    y_NO = build.op("Concat", *blocks, zeros, axis=0)
    num_pairs = build.op("ReduceSum", pairs.counts_E, keepdims=1)
    return combine(build, y_NO, pairs, positions(build, pairs), num_pairs)


def combine(
    build: Builder, y_NO: ir.Value, pairs: Pairs, position_ET: ir.Value, nothing: ir.Value
) -> ir.Value:
    """Gather each row's outputs and contract them with its weights, (G, T, O).

    Parameters
    ----------
    build
        Where nodes are added.
    y_NO
        Outputs, float32, one of whose rows is 0.
    pairs
        The pairs.
    position_ET
        Which output is that of a pair.
    nothing
        Which output is 0, (1,).
    """
    flat = build.constant([-1])
    position_N = build.op("Reshape", build.op("Transpose", position_ET), flat)
    # The same pairs row by row, as flat indices into (T, E).
    by_row_P = build.op(
        "Reshape", build.op("NonZero", build.op("Reshape", pairs.mask_TE, flat)), flat
    )
    slot_TM = _slots(build, pairs.mask_TE)
    position_P = build.op("Concat", build.op("Gather", position_N, by_row_P), nothing, axis=0)
    y_TMO = build.op("Gather", y_NO, build.op("Gather", position_P, slot_TM))
    gates_GN = build.op("Reshape", pairs.gates_GTE, build.constant([pairs.num_gates, -1]))
    weights_GP = build.op("Gather", gates_GN, by_row_P, axis=1)
    zero_G1 = build.constant(np.zeros((pairs.num_gates, 1)), np.float32)
    weights_GP1 = build.op("Concat", weights_GP, zero_G1, axis=1)
    weights_GTM = build.op("Gather", weights_GP1, slot_TM, axis=1)
    weights_GT1M = build.op("Unsqueeze", weights_GTM, build.constant([2]))
    y_GT1O = build.op("MatMul", weights_GT1M, y_TMO)
    return build.op("Squeeze", y_GT1O, build.constant([2]))


def _slots(build: Builder, mask_TE: ir.Value) -> ir.Value:
    """For each row, the indices of its pairs row by row, filled up with P."""
    axis = build.constant([1])
    count_T1 = build.op("ReduceSum", mask_TE, axis, keepdims=1)
    end_T1 = build.op("CumSum", count_T1, build.constant(0))
    start_T1 = build.op("Sub", end_T1, count_T1)
    # The 1 keeps the largest count defined for a batch of no rows.
    counts = build.op("Concat", build.op("Reshape", count_T1, build.constant([-1])), axis, axis=0)
    largest = build.op("ReduceMax", counts, keepdims=0)
    offset_M = build.op("Range", build.constant(0), largest, build.constant(1))
    num_pairs = build.op("ReduceSum", mask_TE, keepdims=0)
    inside_TM = build.op("Less", offset_M, count_T1)
    return build.op("Where", inside_TM, build.op("Add", start_T1, offset_M), num_pairs)
