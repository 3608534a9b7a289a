"""Transposes that ONNX Runtime would make a part of a product, and end the process.

Its MatmulTransposeFusion (1.32) does so when it opens `Transpose`, `Cast` and `MatMul` one after
the other, where the first axis is exchanged with others than the last: sequences that come first,
in float16, which routers cast to float32, and ONNX Runtime itself for products on the CPU.
"""

import onnx_ir as ir


def delay_transposes(graph: ir.Graph) -> None:
    """Transpose after casts and float16 products instead of before: the same numbers."""
    for node in list(graph.all_nodes()):
        turned = node.inputs[0] if node.inputs else None
        transpose = None if turned is None else turned.producer()
        if transpose is None or (transpose.op_type, transpose.domain) != ("Transpose", ""):
            continue
        if not (_is_cast(node) or _is_product_of_rows(node, transpose)):
            continue
        inputs = [transpose.inputs[0], *node.inputs[1:]]
        first = ir.node(node.op_type, inputs, node.attributes, name=f"{node.name}/first")
        then = ir.node("Transpose", first.outputs, transpose.attributes, name=f"{node.name}/then")
        old, new = node.outputs[0], then.outputs[0]
        first.outputs[0].name, first.outputs[0].type = f"{old.name}/first", old.type
        new.name, new.type, new.shape = old.name, old.type, old.shape
        assert node.graph is not None
        node.graph.insert_before(node, [first, then])
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        node.graph.remove(node, safe=True)


def _is_cast(node: ir.Node) -> bool:
    return (node.op_type, node.domain) == ("Cast", "")


def _is_product_of_rows(node: ir.Node, transpose: ir.Node) -> bool:
    """Whether a float16 matrix multiplies rows that are only put into another order."""
    if (node.op_type, node.domain) != ("MatMul", "") or "perm" not in transpose.attributes:
        return False
    order, matrix = transpose.attributes["perm"].as_ints(), node.inputs[1]
    assert matrix is not None
    is_matrix = matrix.shape is not None and len(matrix.shape) == 2
    return is_matrix and matrix.dtype == ir.DataType.FLOAT16 and order[-1] == len(order) - 1
