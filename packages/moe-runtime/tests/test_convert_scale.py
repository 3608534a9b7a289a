"""Mixtures begin as large as the layers whose place they take, whatever their weights sum to.

Axes: T rows, D features.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from _dense import DIM, Block
from torch import nn

from moe_runtime import CometRouter, HashRouter, ReLURouter, Router, TopKRouter
from moe_runtime.convert import CopySplit, RandomSplit, Split, convert

EXPERTS = 4


@pytest.mark.parametrize("split", [CopySplit(), RandomSplit()], ids=["copies", "parts"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_weights_that_do_not_sum_to_1_begin_as_if_they_did(split: Split, *, bias: bool) -> None:
    torch.manual_seed(0)
    dense, x_TD = nn.Sequential(Block(bias=bias)).double(), torch.randn(100, DIM).double()
    model, router = copy.deepcopy(dense), TopKRouter(DIM, EXPERTS, k=1, renormalize=False)
    (layer,) = convert(model, x_TD, router=lambda _dim: router, split=split).layers
    weights_T = router(x_TD).weights.sum(-1)
    assert layer.scale == pytest.approx(1 / float(weights_T.mean()))
    assert 1.5 < layer.scale < EXPERTS
    if isinstance(split, CopySplit):
        expected_TD = dense(x_TD) * layer.scale * weights_T[:, None]
        torch.testing.assert_close(model(x_TD), expected_TD)
        error = (model(x_TD) - dense(x_TD)).norm() / dense(x_TD).norm()
        assert layer.error == pytest.approx(float(error))
    else:
        assert layer.all_experts_error is not None
        assert layer.all_experts_error < 1e-12


def comet(dim: int) -> Router:
    return CometRouter(dim, EXPERTS, k=1)


def hashed(_dim: int) -> Router:
    return HashRouter(10, EXPERTS)


def closed(dim: int) -> Router:
    """Make a router that selects nothing."""
    router = ReLURouter(dim, EXPERTS, k=1)
    for parameter in router.parameters():
        nn.init.constant_(parameter, -1.0)
    return router


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        del input_ids  # which the mixture looks at
        output: torch.Tensor = self.block(x)
        return output


@pytest.mark.parametrize("router", [comet, hashed, closed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_sum_to_1_or_to_nothing_scale_nothing(
    router: Callable[[int], Router], dtype: torch.dtype
) -> None:
    model = Model().to(dtype)
    before = model.block.narrow.weight.clone()
    batch = {"x": torch.rand(1, 9, DIM, dtype=dtype), "input_ids": torch.arange(9)[None]}
    (layer,) = convert(model, batch, router=router, split=CopySplit()).layers
    assert layer.scale == 1.0
    down = model.get_parameter("block.mixture.experts.layers.1.weight")
    assert torch.equal(down, before.expand_as(down))
