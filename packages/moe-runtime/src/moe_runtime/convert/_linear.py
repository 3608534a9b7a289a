"""Linear maps of any class, told by what they compute.

Axes: T rows, F input features, G output features.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime.convert._calls import Call

# Largest relative error of a product that is computed again, by dtype: float32 may be rounded to
# TF32 on a GPU.
PRODUCT_ERROR = {
    torch.float64: 1e-9,
    torch.float32: 2e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


class Linear(NamedTuple):
    """The parameters of a linear map, as `torch.nn.functional.linear` takes them."""

    weight: Tensor  # (G, F)
    bias: Tensor | None  # (G,)
    is_trained: bool = True


def as_linear(module: nn.Module, *, transposed: bool) -> Linear:
    """Return a module's parameters, whose weight is stored as (F, G) where `transposed`."""
    given, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(given, Tensor)
    weight = given.detach().T if transposed else given.detach()
    return Linear(weight, None if bias is None else bias.detach(), given.requires_grad)


def linear_layout(module: nn.Module, call: Call) -> bool | None:
    """Whether a linear map stores its weight transposed; None where it is no linear map.

    PyTorch's own stores (G, F), that of GPT-2 in transformers (F, G).
    """
    parameters = dict(module.named_parameters())
    shapes = {name: parameter.ndim for name, parameter in parameters.items()}
    if shapes not in ({"weight": 2}, {"weight": 2, "bias": 1}) or any(module.children()):
        return None
    for transposed in (False, True):
        weight, bias, _ = as_linear(module, transposed=transposed)
        if weight.shape != (call.output.shape[-1], call.input.shape[-1]):
            continue
        if bias is not None and bias.shape != weight.shape[:1]:
            continue
        again = F.linear(call.input.to(weight.dtype), weight, bias)
        if relative_error(again, call.output) <= PRODUCT_ERROR.get(call.output.dtype, 0.0):
            return transposed
    return None


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of what was expected."""
    if given.shape != expected.shape:
        return float("inf")
    difference = (given.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny))
