"""Run experts by ONNX Runtime's own operator, com.microsoft.MoE.

It takes scores, keeps the `k` largest of their softmax in each row, and computes those experts.
With the logarithms of weights as scores the softmax gives the weights back, divided by their
sum. What it cannot express is refused: it would compute something else without a word.

Axes: T rows, D features of rows and outputs, E experts, G gates.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moe_runtime.onnx._graph import Builder, Contents, Stack

DOMAIN = "com.microsoft"
# The operator's names; its GELU is the approximation by tanh.
_ACTIVATIONS = {
    "gelu_tanh": "gelu",
    "identity": "identity",
    "relu": "relu",
    "silu": "silu",
    "swiglu": "swiglu",
}

# The first of two features in turns through x sigmoid(x), times the second.
SWIGLU: dict[str, int | float] = {
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


def refusal(contents: Contents) -> str | None:
    """Say why the operator cannot stand for a mixture, or None if it can."""
    sizes = [len(contents.layers), contents.in_features, contents.out_features]
    bound = max(contents.max_active)
    if sizes[0] != 2 or sizes[1] != sizes[2]:
        return (
            f"com.microsoft.MoE has two layers and as many outputs as inputs, "
            f"its experts have {sizes[0]} and map {sizes[1]} to {sizes[2]} features"
        )
    first, last = (layer.activation for layer in contents.layers)
    if first == "gelu":
        return (
            'the GELU of com.microsoft.MoE is the approximation by tanh: train with "gelu_tanh" '
            "to use it, or export another target"
        )
    if first not in _ACTIVATIONS or last != "identity":
        return (
            f"com.microsoft.MoE has one of the activations {sorted(_ACTIVATIONS)} between its "
            f"layers and none after them, its experts have {first!r} and {last!r}"
        )
    if bound >= contents.num_experts > 1:
        return (
            "com.microsoft.MoE computes a fixed number of experts a row and drops the others, and "
            f"its gate may use all {contents.num_experts}: export with `hard`=True and `k` below "
            "that, or another target"
        )
    return None


def moe_operator(
    build: Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents
) -> ir.Value:
    """Lower a mixture to one operator a gate: output (G, T, O), float32."""

    def run(gate_TE: ir.Value, bound: int) -> ir.Value:
        zero = build.constant(0, np.float32)
        sum_T1 = build.op("ReduceSum", gate_TE, build.constant([1]), keepdims=1)
        # A row without experts has no softmax of logarithms: any scores do, the sum makes it 0.
        used = build.op("Greater", sum_T1, zero)
        scores_TE = build.op("Where", used, build.op("Log", gate_TE), zero)
        y_TO = build.op(
            "MoE",
            x_TD,
            build.cast(scores_TE, ir.DataType.FLOAT, contents.dtype),
            *(None if stack is None else build.stack(stack) for stack in stacks_in_order(contents)),
            domain=DOMAIN,
            k=bound,
            normalize_routing_weights=1,
            **options(contents),
        )
        return build.op("Mul", build.cast(y_TO, contents.dtype, ir.DataType.FLOAT), sum_T1)

    return gate_by_gate(build, gates_GTE, contents, run)


def gate_by_gate(
    build: Builder,
    gates_GTE: ir.Value,
    contents: Contents,
    run: Callable[[ir.Value, int], ir.Value],
) -> ir.Value:
    """Run one operator for the weights (T, E) of each gate, and its bound: (G, T, O)."""
    outputs = []
    for gate, bound in enumerate(contents.max_active):
        gate_TE = build.op("Gather", gates_GTE, build.constant(gate))
        outputs.append(build.op("Unsqueeze", run(gate_TE, bound), build.constant([0])))
    return build.op("Concat", *outputs, axis=0)


def options(contents: Contents) -> dict[str, int | float | str]:
    """Return the attributes that say which activation there is."""
    activation = contents.layers[0].activation
    gated = SWIGLU if activation == "swiglu" else {}
    return {"activation_type": _ACTIVATIONS[activation], **gated}


def stacks_in_order(contents: Contents) -> list[Stack | None]:
    """Return weights and biases of both layers as the operator takes them."""
    first, second = contents.layers
    stacks = [first.weight, first.bias, second.weight, second.bias]
    if first.activation == "swiglu":
        stacks[:2] = [None if stack is None else _interleaved(stack) for stack in stacks[:2]]
    return stacks


def _interleaved(stack: Stack) -> Stack:
    """Put the features of the two halves in turns, as the operator wants them on the CPU."""
    halves = stack.array.reshape(stack.array.shape[0], 2, -1, *stack.array.shape[2:])
    array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(stack.array.shape)
    return Stack(f"{stack.name}/interleaved", array)
