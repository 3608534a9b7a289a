"""Scores of a router: linear maps in float32 at least, and how they begin."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

# Half-width of the uniform initial leaf and selector scores, in nats (PAPER: COMET, supplement).
INITIAL_SCORE = 0.05
# Initial split scores lie within this share of `gamma`, in the middle of the smooth step.
INITIAL_SPLIT_SHARE = 0.01


def linear_float32(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply `layer` in at least float32: bfloat16 scores flip hard routes."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def initialise(layer: nn.Linear, bound: float) -> None:
    """Draw the weights uniformly from [-bound, bound]; no bias."""
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
