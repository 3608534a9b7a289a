"""Activations in ONNX operators."""

import onnx_ir as ir

from moe_runtime._activations import GATED
from moe_runtime.onnx._graph import Builder


def activate(build: Builder, value: ir.Value, activation: str, num_features: int) -> ir.Value:
    """Activate `num_features` on the last axis; a gated activation halves them."""
    if activation in GATED:
        halves = build.constant([num_features // 2] * 2)
        gate, other = build.ops("Split", value, halves, num_outputs=2, axis=-1)
        return build.op("Mul", activate(build, gate, GATED[activation], 0), other)
    match activation:
        case "identity":
            return value
        case "relu":
            return build.op("Relu", value)
        case "silu":
            return build.op("Mul", value, build.op("Sigmoid", value))
        case "gelu":
            return build.op("Gelu", value)
        case "gelu_tanh":
            return build.op("Gelu", value, approximate="tanh")
    msg = f"activation {activation!r} has no ONNX form"
    raise AssertionError(msg)
