"""Mixtures in an ONNX graph: what their opaque node holds, and how to build nodes beside it.

Axes: D input features, O output features, E experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

DOMAIN, OPERATOR = "moe_runtime", "Mixture"


class Stack(NamedTuple):
    """One parameter of all experts, along its first axis."""

    name: str
    array: NDArray[Any]


class Layer(NamedTuple):
    """A linear map of each expert, and what follows it."""

    weight: Stack  # (E, O, D)
    bias: Stack | None  # (E, O)
    activation: str


class Contents(NamedTuple):
    """What an opaque mixture node holds."""

    name: str  # of the module in the model
    layers: Sequence[Layer]
    out_features: int
    max_active: Sequence[int]  # most experts that a row can use in each gate
    dtype: ir.DataType  # of the rows and the weights

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.layers[0].weight.array.shape[0])

    @property
    def in_features(self) -> int:
        """D."""
        return int(self.layers[0].weight.array.shape[2])

    @property
    def num_gates(self) -> int:
        """G."""
        return len(self.max_active)


@dataclass
class Builder:
    """Adds nodes whose values are named after the mixture that they belong to.

    Constants of a name are made once: a mixture that a model uses twice is stored once.
    """

    prefix: str
    constants: dict[str, ir.Value] = field(default_factory=dict)
    tape: ir.tape.Tape = field(default_factory=ir.tape.Tape)
    count: int = 0

    def name(self, stem: str) -> str:
        """Return a name that no other value has."""
        self.count += 1
        return f"{self.prefix}/{stem}_{self.count}"

    def op(
        self,
        operator: str,
        *inputs: ir.Value | None,
        domain: str = "",
        **attributes: "int | float | str | ir.Graph",
    ) -> ir.Value:
        """Add a node with one output."""
        name = self.name(operator)
        value = ir.Value(name=name)
        return self.tape.op(operator, inputs, attributes, domain=domain, name=name, output=value)

    def ops(
        self, operator: str, *inputs: ir.Value, num_outputs: int, **attributes: "int | ir.Graph"
    ) -> Sequence[ir.Value]:
        """Add a node with several outputs."""
        name = self.name(operator)
        outputs = [ir.Value(name=f"{name}.{index}") for index in range(num_outputs)]
        return self.tape.op_multi_out(operator, inputs, attributes, outputs=outputs, name=name)

    def constant(self, values: object, dtype: type[np.generic] = np.int64) -> ir.Value:
        """Add a small constant."""
        return self.initializer(self.name("constant"), np.asarray(values, dtype=dtype))

    def initializer(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Add a constant of that name, or return the one that there is."""
        if name not in self.constants:
            tensor = ir.tensor(array, name=name)
            self.constants[name] = self.tape.initializer(tensor, name=name)
        return self.constants[name]

    def stack(self, stack: Stack) -> ir.Value:
        """Return a parameter of all experts."""
        return self.initializer(stack.name, stack.array)

    def expert(self, stack: Stack, expert: int) -> ir.Value:
        """Return a parameter of one expert, (O, D) or (O,), without copying it."""
        return self.initializer(f"{stack.name}/expert_{expert}", stack.array[expert])

    def cast(self, value: ir.Value, source: ir.DataType, target: ir.DataType) -> ir.Value:
        """Convert to another dtype, if it is another."""
        return value if source == target else self.op("Cast", value, to=int(target))


def constant_bytes(model: ir.Model) -> int:
    """Add up the sizes of a model's constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return sum(constant.nbytes for constant in constants if constant is not None)


def mixture_nodes(model: ir.Model) -> list[ir.Node]:
    """List the opaque mixtures of an exported model."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]


def read_mixture(node: ir.Node) -> Contents:
    """Read the constants of an opaque mixture."""
    stacks = []
    for value in node.inputs[2:]:
        assert value is not None
        assert value.const_value is not None, f"{value.name} is not constant"
        assert value.name is not None
        stacks.append(Stack(value.name, value.const_value.numpy()))
    attributes: Mapping[str, ir.Attr] = node.attributes
    width = 2 if attributes["bias"].as_int() else 1
    weights = stacks[::width]
    biases = stacks[1::2] if width == 2 else [None] * len(weights)
    activations = attributes["activations"].as_strings()
    dtype = node.inputs[2].dtype if node.inputs[2] is not None else None
    assert dtype is not None
    return Contents(
        name=attributes["name"].as_string(),
        layers=[Layer(*each) for each in zip(weights, biases, activations, strict=True)],
        out_features=attributes["out_features"].as_int(),
        max_active=attributes["max_active"].as_ints(),
        dtype=dtype,
    )
