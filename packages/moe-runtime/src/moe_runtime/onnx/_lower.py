"""Lower mixtures from one opaque operator to what a runtime knows: one way a target.

Axes: T rows, D input features, O output features, E experts, G gates.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from moe_runtime.onnx import _moe_operator, _qmoe
from moe_runtime.onnx._errors import TargetError
from moe_runtime.onnx._graph import DOMAIN, Builder, Contents, mixture_nodes, read_mixture
from moe_runtime.onnx._int8 import int8
from moe_runtime.onnx._moe_operator import moe_operator
from moe_runtime.onnx._qmoe import qmoe
from moe_runtime.onnx._scan import scan
from moe_runtime.onnx._unrolled import unrolled

MICROSOFT = "com.microsoft"
# The names that a canonical model keeps of mixtures whose experts are modules: those are lowered
# when they are exported, one by one.
MODULES = "moe_runtime.module_mixtures"


class Target(NamedTuple):
    """A way to run mixtures."""

    # Output (G, T, O) float32 of rows (T, D) and gates (G, T, E) float32.
    lower: Callable[[Builder, ir.Value, ir.Value, Contents], ir.Value]
    # Why a mixture cannot be run so, if it cannot.
    refusal: Callable[[Contents], str | None] = lambda _contents: None
    domains: tuple[str, ...] = ()
    # Whether gates may be anything; otherwise positive, and as many as the routers vouch for.
    any_gates: bool = True
    is_exact: bool = True
    takes_modules: bool = True


TARGETS = {
    "unrolled": Target(unrolled),
    "scan": Target(scan),
    "onnxruntime": Target(
        moe_operator,
        _moe_operator.refusal,
        (MICROSOFT,),
        any_gates=False,
        takes_modules=False,
    ),
    "int8": Target(int8, domains=(MICROSOFT,), is_exact=False),
    "qmoe": Target(
        qmoe,
        _qmoe.refusal,
        (MICROSOFT,),
        any_gates=False,
        is_exact=False,
        takes_modules=False,
    ),
}


def check_target(model: ir.Model, target: str) -> None:
    """Refuse a target that cannot run every mixture of an exported model."""
    chosen = TARGETS[target]
    reasons = {}
    for node in mixture_nodes(model):
        contents = read_mixture(node)
        reason = chosen.refusal(contents)
        if reason is not None:
            reasons[contents.name] = reason
    if not chosen.takes_modules:
        for name in json.loads(model.metadata_props.get(MODULES, "[]")):
            reasons[name] = "its experts are modules, of which no operator knows"
    if reasons:
        said = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in reasons.items())
        msg = f"`target`={target!r} cannot run every mixture: {said}."
        raise TargetError(msg)


def lower_mixtures(model: ir.Model, target: str) -> None:
    """Replace every mixture of a model in place."""
    model.metadata_props.pop(MODULES, None)
    constants: dict[str, ir.Value] = {}
    for index, node in enumerate(mixture_nodes(model)):
        _replace(model.graph, node, f"mixture_{index}", constants, TARGETS[target])
    model.opset_imports.pop(DOMAIN, None)
    for domain in TARGETS[target].domains:
        model.opset_imports[domain] = 1


def mixture_model(contents: Contents, target: str, *, opset: int) -> ir.Model:
    """Build a model of one mixture alone, whose gates are an input: to verify the lowering."""
    float32 = ir.DataType.FLOAT
    x = ir.val("x", dtype=contents.dtype, shape=("batch", contents.in_features))
    shape = (contents.num_gates, "batch", contents.num_experts)
    gates = ir.val("gates", dtype=float32, shape=shape)
    build = Builder("mixture")
    y = TARGETS[target].lower(build, x, gates, contents)
    y.dtype, y.shape = float32, ir.Shape((contents.num_gates, "batch", contents.out_features))
    domains = dict.fromkeys(TARGETS[target].domains, 1)
    graph = ir.Graph(
        inputs=[x, gates],
        outputs=[y],
        nodes=build.tape.nodes,
        initializers=build.tape.initializers,
        opset_imports={"": opset, **domains},
        name="mixture",
    )
    return ir.Model(graph, ir_version=10)


def _replace(
    graph: ir.Graph,
    node: ir.Node,
    prefix: str,
    constants: dict[str, ir.Value],
    target: Target,
) -> None:
    x, gates, *stack_values = node.inputs
    assert x is not None
    assert gates is not None
    contents = read_mixture(node)
    for value in stack_values:
        assert value is not None
        assert value.name is not None
        constants[value.name] = value
    build = Builder(prefix, constants)
    y = target.lower(build, x, gates, contents)
    y = build.cast(y, ir.DataType.FLOAT, contents.dtype)
    old = node.outputs[0]
    y.name, y.type, y.shape = old.name, old.type, old.shape
    for initializer in build.tape.initializers:
        graph.register_initializer(initializer)
    graph.insert_before(node, build.tape.nodes)
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for value in stack_values:
        assert value is not None
        assert value.name is not None
        if not value.uses():
            graph.initializers.pop(value.name, None)
