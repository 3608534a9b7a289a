"""Run experts on 8-bit integers: a quarter of the memory, for ONNX Runtime's CPU.

A weight has a scale an output, a row of inputs a scale of its own. So a row's answer does not
depend on its batch, as it would with DynamicQuantizeMatMul, whose scale is one for all rows.

Processors with AVX2 or AVX-512 but without VNNI add the products of two neighbours, inputs unsigned
and weights signed bytes, in 16 bits. Weights are coded so that no sum overflows there.

All but the products is done for the pairs of all experts at once: at one row an expert without
rows then costs one node a layer.

Axes: T rows, D input features, O output features, E experts, P pairs sorted by expert.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_runtime.onnx._activate import activate
from moe_runtime.onnx._graph import Builder, Contents, Layer
from moe_runtime.onnx._pairs import Pairs, combine_sorted, list_pairs, split

DOMAIN = "com.microsoft"
LARGEST_CODE, ZERO = 127, 128  # of inputs of either sign
LARGEST_BYTE = 255  # of inputs that are never negative
# Of two weights whose products are added in 16 bits; rounding adds 1 at most: 255 x 128 < 2^15.
LARGEST_PAIR = 127
# Keeps a row of zeros from dividing by 0.
SMALLEST_ROW = 1e-30


def int8(build: Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents) -> ir.Value:
    """Lower a mixture to products of 8-bit integers: output (G, T, O), float32."""
    size = {"num_gates": contents.num_gates, "num_experts": contents.num_experts}
    pairs = list_pairs(build, gates_GTE, **size)
    x_TD = build.cast(x_TD, contents.dtype, ir.DataType.FLOAT)
    # A row is encoded once, however many experts it has.
    codes, largest, step, zero = _encode_rows(build, x_TD, is_positive=False)
    codes = build.op("Gather", codes, pairs.row_P)
    largest = build.op("Gather", largest, pairs.row_P)
    value = _layer(build, codes, largest, step, zero, contents.layers[0], pairs)
    for before, layer in zip(contents.layers, contents.layers[1:], strict=False):
        encoded = _encode_rows(build, value, is_positive=before.activation == "relu")
        value = _layer(build, *encoded, layer, pairs)
    return combine_sorted(build, [value], pairs, contents.out_features)


def encode(weight_OD: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (D, O) and a scale for each output (O,): weight = code * scale.

    Two neighbours, inputs 2 i and 2 i + 1, of one sign sum to 128 at most.
    """
    weight_OD = weight_OD.astype(np.float32)
    pairs_OD2 = np.pad(weight_OD, ((0, 0), (0, weight_OD.shape[1] % 2)))
    pairs_OD2 = pairs_OD2.reshape(len(weight_OD), -1, 2)
    sums_OD = np.maximum(pairs_OD2.clip(min=0).sum(-1), (-pairs_OD2).clip(min=0).sum(-1))
    scale_O = np.maximum(sums_OD.max(1, initial=0) / LARGEST_PAIR, np.finfo(np.float32).tiny)
    codes_OD = np.rint(weight_OD / scale_O[:, None]).astype(np.int8)
    return np.ascontiguousarray(codes_OD.T), scale_O


def _encode_rows(
    build: Builder, x: ir.Value, *, is_positive: bool
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Encode rows: codes, the largest size in each row, and the step and zero of all codes."""
    axis = build.constant([1])
    largest = build.op("ReduceMax", x, axis, keepdims=1)
    if not is_positive:
        lowest = build.op("Neg", build.op("ReduceMin", x, axis, keepdims=1))
        largest = build.op("Max", largest, lowest)
    largest = build.op("Max", largest, build.constant(SMALLEST_ROW, np.float32))
    step = build.constant(1 / (LARGEST_BYTE if is_positive else LARGEST_CODE), np.float32)
    zero = build.constant(0 if is_positive else ZERO, np.uint8)
    codes = build.op("QuantizeLinear", build.op("Div", x, largest), step, zero)
    return codes, largest, step, zero


def _layer(
    build: Builder,
    codes_PD: ir.Value,
    largest_P1: ir.Value,
    step: ir.Value,
    zero: ir.Value,
    layer: Layer,
    pairs: Pairs,
) -> ir.Value:
    """Give each expert its block of codes; scale, add biases and activate all of them."""
    outputs = []
    for expert, block_RD in enumerate(split(build, codes_PD, pairs)):
        codes_DO, scale_O = _codes(build, layer, expert)
        inputs = (block_RD, codes_DO, step, scale_O, zero)
        outputs.append(build.op("MatMulIntegerToFloat", *inputs, domain=DOMAIN))
    value = build.op("Mul", build.op("Concat", *outputs, axis=0), largest_P1)
    if layer.bias is not None:
        bias = build.initializer(f"{layer.bias.name}/float32", layer.bias.array.astype(np.float32))
        value = build.op("Add", value, build.op("Gather", bias, pairs.expert_P))
    return activate(build, value, layer.activation, layer.weight.array.shape[1])


def _codes(build: Builder, layer: Layer, expert: int) -> tuple[ir.Value, ir.Value]:
    name = f"{layer.weight.name}/expert_{expert}"
    if f"{name}/codes" not in build.constants:
        codes_DO, scale_O = encode(layer.weight.array[expert])
        build.initializer(f"{name}/codes", codes_DO)
        build.initializer(f"{name}/scale", scale_O)
    return build.constants[f"{name}/codes"], build.constants[f"{name}/scale"]
