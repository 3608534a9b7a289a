"""Shapes that torch.onnx leaves open although they are known, so that a batch may have no rows.

ONNX Runtime refuses a -1 beside a 0: any size would do. PyTorch's attention asks for one.
"""

import numpy as np
import onnx_ir as ir


def close_reshapes(graph: ir.Graph) -> None:
    """Replace each -1 in the shape of a Reshape by the size of its output, where that is fixed."""
    for node in list(graph.all_nodes()):
        if node.op_type != "Reshape" or node.domain:
            continue
        shape, output = node.inputs[1], node.outputs[0].shape
        concat = None if shape is None else shape.producer()
        if concat is None or output is None or concat.op_type != "Concat":
            continue
        if len(concat.inputs) != len(output):
            continue  # parts of several sizes each
        for axis, (part, size) in enumerate(zip(concat.inputs, output, strict=True)):
            if isinstance(size, int) and part is not None and _is_open(part):
                name = f"{node.name}/size_{axis}"
                known = ir.val(name, const_value=ir.tensor(np.array([size]), name=name))
                graph.register_initializer(known)
                # The shape may be that of other nodes too.
                own = ir.node("Concat", concat.inputs, {"axis": 0}, name=f"{node.name}/shape")
                own.replace_input_with(axis, known)
                own.outputs[0].name = f"{node.name}/shape"
                assert node.graph is not None
                node.graph.insert_before(node, own)
                node.replace_input_with(1, own.outputs[0])


def _is_open(part: ir.Value) -> bool:
    constant = part.const_value
    return constant is not None and constant.size == 1 and int(constant.numpy().item()) == -1
