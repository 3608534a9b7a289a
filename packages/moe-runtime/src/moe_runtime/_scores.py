"""Scores of a router: linear maps, cosines, or any module, in float32 at least.

Axes: D features, E experts, K slots.
"""

import math

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import moe_gates
from moe_runtime._checks import check_number, check_positive, has_values
from moe_runtime._pretrained import PretrainedModule
from moe_runtime._products import linear

# Half-width of the uniform initial leaf and selector scores, in nats (PAPER: COMET, supplement).
INITIAL_SCORE = 0.05
# Initial split scores lie within this share of `gamma`, in the middle of the smooth step.
INITIAL_SPLIT_SHARE = 0.01


def score_float32(module: nn.Module, x: Tensor) -> Tensor:
    """Apply `module` in at least float32: bfloat16 scores flip hard routes."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x = x.to(dtype)
    if type(module) is nn.Linear:
        bias: Tensor | None = module.bias
        # What is traced holds no library's own operator.
        product = linear if has_values(x) else F.linear
        return product(x, module.weight.to(dtype), None if bias is None else bias.to(dtype))
    state = [*module.named_parameters(), *module.named_buffers()]
    wide = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state
    }
    scores: Tensor = functional_call(module, wide, (x,))
    return scores


def slot_scores(module: nn.Module, x: Tensor, num_slots: int) -> Tensor:
    """Scores of each slot, shape (..., K, number of scores a slot)."""
    return torch.unflatten(score_float32(module, x), -1, (num_slots, -1))


def linear_scores(dim: int, size: int, *, bound: float) -> nn.Linear:
    """Return a linear map with weights drawn from [-bound, bound], and no bias to begin with."""
    layer = nn.Linear(dim, size)
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


class StaticScores(nn.Module):
    """Scores that are the same for every row, drawn from [-bound, bound] to begin with."""

    def __init__(self, size: int, *, bound: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(size).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002 - the same for every row
        """Return the scores, without the rows' axes."""
        return self.bias


class CosineScores(PretrainedModule):
    """Scores by direction: the cosine of a projected row and an expert's embedding.

    For the `score` of a router. How long rows and embeddings are plays no part.

    Parameters
    ----------
    dim
        Input features of the router, D.
    num_experts
        Number of experts, E.
    num_features
        Features that rows are projected to.
    temperature
        What cosines are divided by at first, > 0; its logarithm is learned.

    References
    ----------
    Chi et al., "On the Representation Collapse of Sparse Mixture of Experts", NeurIPS 2022,
    arXiv:2204.09179.
    """

    def __init__(
        self, dim: int, num_experts: int, *, num_features: int = 16, temperature: float = 0.07
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("num_experts", num_experts)
        check_positive("num_features", num_features)
        check_number("temperature", temperature)
        if not 0 < temperature < math.inf:
            msg = f"`temperature` must be finite and > 0, got {temperature!r}."
            raise ValueError(msg)
        self.project = nn.Linear(dim, num_features, bias=False)
        self.embedding = nn.Parameter(torch.randn(num_experts, num_features))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Tensor) -> Tensor:
        """Score rows: (..., D) to (..., E), in nats."""
        temperature = self.log_temperature.exp()
        projected: Tensor = self.project(x)
        return moe_gates.cosine_scores(projected, self.embedding, temperature=temperature, xp=xp)
