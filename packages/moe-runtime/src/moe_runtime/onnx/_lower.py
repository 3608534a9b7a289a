"""Lower a mixture from one opaque operator to standard ONNX operators, sparse ones.

The graph lists the selected (row, expert) pairs sorted by expert (NonZero), runs one
Gemm a layer on each expert's rows, and gathers each row's outputs back. It scatters nothing:
ScatterND with additions is a data race in ONNX Runtime (1.32) on the CPU.

Axes: T rows, D input features, O output features, E experts, G gates, P (row, expert)
pairs, M the largest number of pairs that a row of the batch has (at least 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_runtime._activations import GATED

DOMAIN, OPERATOR = "moe_runtime", "Mixture"
_OPERATORS = {"relu": "Relu", "gelu": "Gelu"}


class Contents(NamedTuple):
    """What an opaque mixture node holds."""

    weights: Sequence[NDArray[Any]]  # (E, O, D) of each layer
    biases: Sequence[NDArray[Any] | None]  # (E, O) of each layer
    activations: Sequence[str]  # after each layer
    num_gates: int
    out_features: int


@dataclass
class _Builder:
    """Adds nodes whose values are named after the mixture that they belong to."""

    prefix: str
    tape: ir.tape.Tape = field(default_factory=ir.tape.Tape)
    count: int = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{self.prefix}/{stem}_{self.count}"

    def op(self, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = self.name(operator)
        value = ir.Value(name=name)
        return self.tape.op(operator, inputs, attributes, name=name, output=value)

    def constant(self, values: object, dtype: type[np.generic] = np.int64) -> ir.Value:
        return self.initializer(np.asarray(values, dtype=dtype))

    def initializer(self, array: NDArray[Any]) -> ir.Value:
        name = self.name("constant")
        return self.tape.initializer(ir.tensor(array, name=name), name=name)

    def split(
        self, x: ir.Value, counts: ir.Value, num_outputs: int, *, axis: int
    ) -> Sequence[ir.Value]:
        name = self.name("Split")
        outputs = [ir.Value(name=f"{name}.{index}") for index in range(num_outputs)]
        axes = {"axis": axis}
        return self.tape.op_multi_out("Split", [x, counts], axes, outputs=outputs, name=name)


def mixture_nodes(model: ir.Model) -> list[ir.Node]:
    """List the opaque mixtures of an exported model."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def read_mixture(node: ir.Node) -> Contents:
    """Read the constants of an opaque mixture."""
    stacks = []
    for value in node.inputs[2:]:
        assert value is not None
        assert value.const_value is not None, f"{value.name} is not constant"
        stacks.append(value.const_value.numpy())
    shape = node.outputs[0].shape
    assert shape is not None
    num_gates, _, out_features = shape
    assert isinstance(num_gates, int)
    assert isinstance(out_features, int)
    activations = list(node.attributes["activations"].as_strings())
    if not node.attributes["bias"].as_int():
        return Contents(stacks, [None] * len(stacks), activations, num_gates, out_features)
    return Contents(stacks[::2], stacks[1::2], activations, num_gates, out_features)


def lower_mixtures(model: ir.Model) -> None:
    """Replace every mixture of a model in place."""
    for index, node in enumerate(mixture_nodes(model)):
        _replace(model.graph, node, f"mixture_{index}")
    model.opset_imports.pop(DOMAIN, None)


def mixture_model(contents: Contents, *, opset: int) -> ir.Model:
    """Build a model of one mixture alone, whose gates are an input: to verify the lowering."""
    num_experts, _, in_features = contents.weights[0].shape
    float32 = ir.DataType.FLOAT
    x = ir.val("x", dtype=float32, shape=("batch", in_features))
    gates = ir.val("gates", dtype=float32, shape=(contents.num_gates, "batch", num_experts))
    build = _Builder("mixture")
    y = _mixture(build, x, gates, contents)
    y.dtype, y.shape = float32, ir.Shape((contents.num_gates, "batch", contents.out_features))
    graph = ir.Graph(
        inputs=[x, gates],
        outputs=[y],
        nodes=build.tape.nodes,
        initializers=build.tape.initializers,
        opset_imports={"": opset},
        name="mixture",
    )
    return ir.Model(graph, ir_version=10)


def _replace(graph: ir.Graph, node: ir.Node, prefix: str) -> None:
    x, gates, *stack_values = node.inputs
    assert x is not None
    assert gates is not None
    build = _Builder(prefix)
    y = _mixture(build, x, gates, read_mixture(node))
    old = node.outputs[0]
    y.type, y.shape = old.type, old.shape
    for initializer in build.tape.initializers:
        graph.register_initializer(initializer)
    graph.insert_before(node, build.tape.nodes)
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for value in stack_values:
        assert value is not None
        assert value.name is not None
        if not value.uses():
            graph.initializers.pop(value.name)


def _mixture(build: _Builder, x_TD: ir.Value, gates_GTE: ir.Value, contents: Contents) -> ir.Value:
    zero = build.constant(0, np.float32)
    active_GTE = build.op("Not", build.op("Equal", gates_GTE, zero))
    counts_GTE = build.op("Cast", active_GTE, to=int(ir.DataType.INT64))
    mask_TE = build.op("ReduceMax", counts_GTE, build.constant([0]), keepdims=0)
    y_PO = _run_pairs(build, x_TD, mask_TE, contents)
    return _combine(build, y_PO, mask_TE, gates_GTE, contents)


def _run_pairs(build: _Builder, x_TD: ir.Value, mask_TE: ir.Value, contents: Contents) -> ir.Value:
    """Compute all pairs sorted by expert; one row of zeros stands behind them."""
    num_experts = contents.weights[0].shape[0]
    mask_ET = build.op("Transpose", mask_TE)
    row_P = build.op("Gather", build.op("NonZero", mask_ET), build.constant(1))
    counts_E = build.op("ReduceSum", mask_ET, build.constant([1]), keepdims=0)
    rows_PD = build.op("Gather", x_TD, row_P)
    blocks = build.split(rows_PD, counts_E, num_experts, axis=0)
    outputs = [_run_expert(build, block, contents, expert) for expert, block in enumerate(blocks)]
    zeros = build.initializer(np.zeros((1, contents.out_features), np.float32))
    return build.op("Concat", *outputs, zeros, axis=0)


def _run_expert(build: _Builder, value: ir.Value, contents: Contents, expert: int) -> ir.Value:
    layers = zip(contents.weights, contents.biases, contents.activations, strict=True)
    for weight_EOD, bias_EO, activation in layers:
        constants = [weight_EOD[expert]] + ([] if bias_EO is None else [bias_EO[expert]])
        inputs = [build.initializer(np.ascontiguousarray(constant)) for constant in constants]
        value = build.op("Gemm", value, *inputs, transB=1)
        value = _activate(build, value, activation, weight_EOD.shape[1])
    return value


def _activate(build: _Builder, value: ir.Value, activation: str, num_features: int) -> ir.Value:
    if activation in GATED:
        halves = build.constant([num_features // 2] * 2)
        gate, other = build.split(value, halves, 2, axis=1)
        return build.op("Mul", _activate(build, gate, GATED[activation], 0), other)
    if activation == "identity":
        return value
    if activation == "silu":
        return build.op("Mul", value, build.op("Sigmoid", value))
    return build.op(_OPERATORS[activation], value)


def _combine(
    build: _Builder, y_PO: ir.Value, mask_TE: ir.Value, gates_GTE: ir.Value, contents: Contents
) -> ir.Value:
    """Gather each row's outputs and contract them with its weights in each gate."""
    num_gates, num_experts = contents.num_gates, contents.weights[0].shape[0]
    one = build.constant(1)
    flat = build.constant([-1])
    # Position of each pair in the order of `y_PO`: a running count along that order.
    mask_ET = build.op("Transpose", mask_TE)
    running = build.op("CumSum", build.op("Reshape", mask_ET, flat), build.constant(0))
    by_expert = build.constant([num_experts, -1])
    position_ET = build.op("Reshape", build.op("Sub", running, one), by_expert)
    position_N = build.op("Reshape", build.op("Transpose", position_ET), flat)
    # The same pairs row by row, as flat indices into (T, E).
    by_row_P = build.op("Reshape", build.op("NonZero", build.op("Reshape", mask_TE, flat)), flat)
    slot_TM = _slots(build, mask_TE)
    num_pairs = build.op("ReduceSum", mask_TE, keepdims=0)
    last = build.op("Unsqueeze", num_pairs, build.constant([0]))
    position_P = build.op("Concat", build.op("Gather", position_N, by_row_P), last, axis=0)
    y_TMO = build.op("Gather", y_PO, build.op("Gather", position_P, slot_TM))
    gates_GN = build.op("Reshape", gates_GTE, build.constant([num_gates, -1]))
    weights_GP = build.op("Gather", gates_GN, by_row_P, axis=1)
    zero_G1 = build.initializer(np.zeros((num_gates, 1), np.float32))
    weights_GP1 = build.op("Concat", weights_GP, zero_G1, axis=1)
    weights_GTM = build.op("Gather", weights_GP1, slot_TM, axis=1)
    weights_GT1M = build.op("Unsqueeze", weights_GTM, build.constant([2]))
    y_GT1O = build.op("MatMul", weights_GT1M, y_TMO)
    return build.op("Squeeze", y_GT1O, build.constant([2]))


def _slots(build: _Builder, mask_TE: ir.Value) -> ir.Value:
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
