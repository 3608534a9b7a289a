"""The activations that experts know, by the names that the field gives them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

_aten = torch.ops.aten


class Activation(NamedTuple):
    """What follows a linear map.

    A gated one needs twice the features: the first half goes through `function` and is
    multiplied by the second (Shazeer, 2020, arXiv:2002.05202).
    """

    function: Callable[[Tensor], Tensor]
    # (incoming gradient, what the function was given) to the gradient of that.
    derivative: Callable[[Tensor, Tensor], Tensor]
    gated: bool = False

    def __call__(self, y: Tensor) -> Tensor:
        """Activate features on the last axis; a gated activation halves it."""
        if not self.gated:
            return self.function(y)
        gate, value = y.chunk(2, -1)
        return self.function(gate) * value

    def backward(self, grad: Tensor, y: Tensor) -> Tensor:
        """Gradient of the features, given what `__call__` was given."""
        if not self.gated:
            return self.derivative(grad, y)
        gate, value = y.chunk(2, -1)
        return torch.cat([self.derivative(grad * value, gate), grad * self.function(gate)], -1)


def _grad_of_relu(grad: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _aten.threshold_backward(grad, y, 0)
    return result


def _grad_of_gelu(grad: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _aten.gelu_backward(grad, y)
    return result


def _grad_of_gelu_tanh(grad: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _aten.gelu_backward(grad, y, approximate="tanh")
    return result


def _grad_of_silu(grad: Tensor, y: Tensor) -> Tensor:
    result: Tensor = _aten.silu_backward(grad, y)
    return result


ACTIVATIONS = {
    "geglu": Activation(F.gelu, _grad_of_gelu, gated=True),
    "geglu_tanh": Activation(partial(F.gelu, approximate="tanh"), _grad_of_gelu_tanh, gated=True),
    "gelu": Activation(F.gelu, _grad_of_gelu),
    "gelu_tanh": Activation(partial(F.gelu, approximate="tanh"), _grad_of_gelu_tanh),
    "identity": Activation(lambda y: y, lambda grad, _y: grad),
    "reglu": Activation(torch.relu, _grad_of_relu, gated=True),
    "relu": Activation(torch.relu, _grad_of_relu),
    "silu": Activation(F.silu, _grad_of_silu),
    "swiglu": Activation(F.silu, _grad_of_silu, gated=True),
}
# What the gate of a gated activation goes through.
GATED = {"geglu": "gelu", "geglu_tanh": "gelu_tanh", "reglu": "relu", "swiglu": "silu"}


def check_activation(name: str, value: str) -> None:
    """Refuse an activation that the experts and their export do not know."""
    if value not in ACTIVATIONS:
        msg = f"`{name}` must be one of {sorted(ACTIVATIONS)}, got {value!r}."
        raise ValueError(msg)
