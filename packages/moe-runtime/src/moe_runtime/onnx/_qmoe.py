"""Run experts by ONNX Runtime's own operator on 8-bit weights, com.microsoft.QMoE.

What it can run is what com.microsoft.MoE can. Weights have a scale for each block of an output's
inputs, and so have the rows within the operator: a row's answer does not depend on its batch.

Axes: T rows, D input features, O output features, E experts, G gates, B blocks of D.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_runtime.onnx import _moe_operator
from moe_runtime.onnx._graph import Builder, Contents, Stack
from moe_runtime.onnx._moe_operator import DOMAIN, gate_by_gate, options, stacks_in_order

# At one row of 768 x 3072, one scale an output takes ten times as long, and blocks of 32 twice
# as long, for a relative error of 1.0 instead of 1.25 %.
LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16
LARGEST_CODE, ZERO = 127, 128


def refusal(contents: Contents) -> str | None:
    """Say why the operator cannot stand for a mixture, or None if it can."""
    reason = _moe_operator.refusal(contents)
    if reason is not None:
        return reason.replace("com.microsoft.MoE", "com.microsoft.QMoE")
    widths = [layer.weight.array.shape[2] for layer in contents.layers]
    if _block(contents) < SMALLEST_BLOCK:
        return (
            f"com.microsoft.QMoE scales blocks of {SMALLEST_BLOCK} features at least, its experts "
            f"have layers of {widths[0]} and {widths[1]}, which no such block divides"
        )
    return None


def qmoe(build: Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents) -> ir.Value:
    """Lower a mixture to one operator a gate: output (G, T, O), float32."""
    block = _block(contents)
    x_TD = build.cast(x_TD, contents.dtype, ir.DataType.FLOAT)
    weight_1, bias_1, weight_2, bias_2 = stacks_in_order(contents)
    inputs = []
    for weight, bias in ((weight_1, bias_1), (weight_2, bias_2)):
        assert weight is not None
        inputs += [*_codes(build, weight, block), _bias(build, bias)]

    def run(gate_TE: ir.Value, bound: int) -> ir.Value:
        # Which experts, and with which weights: the same numbers say both.
        between: list[ir.Value | None] = [None] * 6
        return build.op(
            "QMoE",
            x_TD,
            gate_TE,
            *inputs,
            *between,
            gate_TE,
            domain=DOMAIN,
            k=bound,
            normalize_routing_weights=0,
            expert_weight_bits=8,
            block_size=block,
            **options(contents),
        )

    return gate_by_gate(build, gates_GTE, contents, run)


def encode(weight_EOD: NDArray[Any], block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (E, O, D) and scales (E, O, B): weight = (code - 128) * scale of its block."""
    blocks = weight_EOD.astype(np.float32).reshape(*weight_EOD.shape[:2], -1, block)
    scale = np.abs(blocks).max(-1) / LARGEST_CODE
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    codes = np.rint(blocks / scale[..., None]) + ZERO
    return codes.astype(np.uint8).reshape(weight_EOD.shape), scale


def _block(contents: Contents) -> int:
    """Return the largest block that divides the inputs of both layers; a power of two."""
    common = np.gcd.reduce([layer.weight.array.shape[2] for layer in contents.layers])
    block = LARGEST_BLOCK
    while common % block:
        block //= 2
    return block


def _codes(build: Builder, weight: Stack, block: int) -> tuple[ir.Value, ir.Value]:
    if f"{weight.name}/codes" not in build.constants:
        codes, scale = encode(weight.array, block)
        build.initializer(f"{weight.name}/codes", codes)
        build.initializer(f"{weight.name}/scale", scale)
    return build.constants[f"{weight.name}/codes"], build.constants[f"{weight.name}/scale"]


def _bias(build: Builder, bias: Stack | None) -> ir.Value | None:
    if bias is None:
        return None
    return build.initializer(f"{bias.name}/float32", bias.array.astype(np.float32))
