"""Mixtures whose experts are modules of the user's own: each is exported, and given its rows.

Axes: T rows, D input features, O output features, E experts, G gates, R rows of one expert.
"""

import onnx_ir as ir
import torch
from torch import Tensor, nn

from moe_runtime._expert_set import ExpertSet
from moe_runtime.onnx._graph import DOMAIN, Builder
from moe_runtime.onnx._pairs import list_pairs
from moe_runtime.onnx._trace import trace
from moe_runtime.onnx._unrolled import run_one_by_one

OPERATOR = "ModuleMixture"
NUM_EXAMPLE_ROWS = 3


class _EveryExpert(nn.Module):
    """Each expert on rows of its own: one graph, whose parts have no rows in common."""

    def __init__(self, experts: ExpertSet) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, blocks: list[Tensor]) -> list[Tensor]:
        """Run expert e on the e-th block: (R, D) to (R, O)."""
        return [self.experts.one(expert, block) for expert, block in enumerate(blocks)]


def module_nodes(model: ir.Model) -> list[ir.Node]:
    """List the opaque mixtures of modules in an exported model."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def module_mixture(experts: ExpertSet, node: ir.Node) -> ir.Model:
    """Build a model of one mixture alone: x (T, D) and gates (G, T, E) to y (G, T, O), float32."""
    x, gates = node.inputs
    assert x is not None
    assert x.dtype is not None
    assert gates is not None
    every = _trace_experts(experts)
    num_gates = len(node.attributes["max_active"].as_ints())
    x = ir.val("x", dtype=x.dtype, shape=("batch", experts.in_features))
    shape = (num_gates, "batch", experts.num_experts)
    gates = ir.val("gates", dtype=ir.DataType.FLOAT, shape=shape)
    build = Builder("mixture")
    outputs = list(every.graph.outputs)
    blocks = list(every.graph.inputs)
    nodes = list(every.graph)
    every.graph.remove(nodes)
    every.graph.outputs.clear()

    def run(expert: int, rows_RD: ir.Value) -> ir.Value:
        ir.convenience.replace_all_uses_with(blocks[expert], rows_RD)
        output = rows_RD if outputs[expert] is blocks[expert] else outputs[expert]
        assert x.dtype is not None
        return build.cast(output, x.dtype, ir.DataType.FLOAT)

    size = {"num_gates": num_gates, "num_experts": experts.num_experts}
    pairs = list_pairs(build, gates, **size)
    y = run_one_by_one(build, x, pairs, experts.out_features, run)
    y.dtype, y.shape = ir.DataType.FLOAT, ir.Shape((num_gates, "batch", experts.out_features))
    initializers = list(every.graph.initializers.values())
    every.graph.initializers.clear()
    graph = ir.Graph(
        inputs=[x, gates],
        outputs=[y],
        nodes=[*build.tape.nodes, *nodes],
        initializers=[*build.tape.initializers, *initializers],
        opset_imports=dict(every.graph.opset_imports),
        name="mixture",
    )
    graph.sort()
    return ir.Model(graph, ir_version=10)


def inline(graph: ir.Graph, node: ir.Node, mixture: ir.Model, prefix: str) -> None:
    """Put a model of one mixture into the place of its opaque node."""
    x, gates = node.inputs
    old = node.outputs[0]
    assert x is not None
    assert gates is not None
    assert old.dtype is not None
    inner = mixture.graph
    for source, target in zip(inner.inputs, (x, gates), strict=True):
        ir.convenience.replace_all_uses_with(source, target)
    (y,) = inner.outputs
    inner.outputs.clear()
    # ONNX Runtime (1.32) gives values the same memory where axes of the same names make up their
    # shapes. In another mixture, or in a second use of this one, the names stand for other sizes.
    for each in inner.all_nodes():
        for output in each.outputs:
            output.shape = None
    nodes = list(inner)
    inner.remove(nodes)
    initializers = list(inner.initializers.values())
    inner.initializers.clear()
    for each in nodes:
        each.name = f"{prefix}/{each.name}"
        for output in each.outputs:
            output.name = f"{prefix}/{output.name}"
    for value in initializers:
        value.name = f"{prefix}/{value.name}"
        graph.register_initializer(value)
    cast = Builder(f"{prefix}/answer")
    y = cast.cast(y, ir.DataType.FLOAT, old.dtype)
    y.name, y.type, y.shape = old.name, old.type, old.shape
    graph.insert_before(node, [*nodes, *cast.tape.nodes])
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _trace_experts(experts: ExpertSet) -> ir.Model:
    shape = (NUM_EXAMPLE_ROWS, experts.in_features)
    count = range(experts.num_experts)
    blocks = [torch.zeros(shape, dtype=experts.dtype) for _ in count]
    names = [f"block_{expert}" for expert in count]
    rows = [{0: torch.export.Dim(f"rows_{expert}")} for expert in count]
    return trace(
        _EveryExpert(experts).eval(), [blocks], names, [f"y_{expert}" for expert in count], [rows]
    )
