"""Which hidden units each expert gets, and how important they are.

Axes: E experts, H hidden units, U those of an expert.
"""

import copy
from typing import Any

import pytest
import torch
from _dense import DIM, HIDDEN, Block, GatedBlock, Model, token_batch
from torch import Tensor, nn

from moe_runtime.convert import (
    CopySplit,
    DenseLayer,
    ImportanceSplit,
    KMeansSplit,
    RandomSplit,
    Split,
    hidden_unit_importance,
)
from moe_runtime.convert._linear import Linear


def layer(num_hidden: int = HIDDEN, name: str = "layer") -> DenseLayer:
    up = Linear(torch.randn(num_hidden, DIM), torch.randn(num_hidden))
    return DenseLayer(name, up, Linear(torch.randn(DIM, num_hidden), None), None)


@pytest.mark.parametrize("num_experts", [1, 3, 8, 24])
@pytest.mark.parametrize("split", [RandomSplit(seed=3), KMeansSplit(seed=3)])
def test_each_hidden_unit_is_in_one_expert(split: Split, num_experts: int) -> None:
    units_EU = split.hidden_units(layer(), num_experts)
    assert units_EU.shape == (num_experts, HIDDEN // num_experts)
    assert units_EU.flatten().sort().values.tolist() == list(range(HIDDEN))


@pytest.mark.parametrize("split", [RandomSplit(), KMeansSplit()])
def test_a_split_repeats_and_differs_by_layer_and_seed(split: RandomSplit | KMeansSplit) -> None:
    one, other = layer(240), layer(240, "other")
    units_EU = split.hidden_units(one, 3)
    assert torch.equal(split.hidden_units(one, 3), units_EU)
    renamed = DenseLayer("other", *one[1:])
    assert not torch.equal(split.hidden_units(renamed, 3), units_EU)
    assert not torch.equal(type(split)(seed=1).hidden_units(one, 3), units_EU)
    assert not torch.equal(split.hidden_units(other, 3), units_EU)


def test_hidden_units_that_read_alike_are_together() -> None:
    directions_ED = torch.eye(DIM)[:4]
    cluster_H = torch.arange(40) % 4
    scale_H1 = torch.rand(40, 1) + 0.5
    weight_HD = scale_H1 * directions_ED[cluster_H] + 0.01 * torch.randn(40, DIM)
    planted = layer(40)._replace(up=Linear(weight_HD, None))
    found = {
        tuple(sorted(cluster_H[units].tolist()))
        for seed in range(5)
        for units in KMeansSplit(seed=seed).hidden_units(planted, 4)
        if len(set(cluster_H[units].tolist())) == 1
    }
    assert found == {(each,) * 10 for each in range(4)}


def test_copies_have_everything() -> None:
    assert CopySplit().hidden_units(layer(), 2).tolist() == [list(range(HIDDEN))] * 2


def test_the_most_important_are_shared_and_the_next_are_dealt_in_turn() -> None:
    importance = {"layer": torch.arange(HIDDEN).double()}
    units_EU = ImportanceSplit(importance, width=4, num_shared=2).hidden_units(layer(), 3)
    assert units_EU.tolist() == [[23, 22, 21, 18], [23, 22, 20, 17], [23, 22, 19, 16]]
    alone = ImportanceSplit(importance, width=8, num_shared=0).hidden_units(layer(), 3)
    assert alone.flatten().sort().values.tolist() == list(range(HIDDEN))
    same = ImportanceSplit(importance, width=HIDDEN, num_shared=HIDDEN).hidden_units(layer(), 2)
    assert same.shape == (2, HIDDEN)


@pytest.mark.parametrize(("width", "num_shared"), [(8, 1), (4, 5), (25, 25), (0, 0), (4, -1)])
def test_an_impossible_share_is_refused(width: int, num_shared: int) -> None:
    split = ImportanceSplit({"layer": torch.ones(HIDDEN)}, width=width, num_shared=num_shared)
    with pytest.raises(ValueError, match=r"`width`|`num_shared`"):
        split.hidden_units(layer(), 4)


@pytest.mark.parametrize(
    "block", [Block(), Block(bias=False), GatedBlock()], ids=["plain", "without bias", "gated"]
)
def test_importance_is_that_of_weights_times_gradients(block: nn.Module) -> None:
    model = nn.Sequential(block).double()
    x, targets = torch.randn(2, 5, 3, DIM, dtype=torch.float64).unbind()
    expected_H = torch.zeros(HIDDEN, dtype=torch.float64)
    for example, target in zip(x, targets, strict=True):
        copied = copy.deepcopy(model)
        (copied(example) - target).square().sum().backward()
        total_H = torch.zeros_like(expected_H)
        for weight in (each for each in copied.parameters() if each.ndim == 2):
            assert weight.grad is not None
            axis = 1 if weight.shape[0] == HIDDEN else 0
            total_H += (weight.detach() * weight.grad).sum(axis)
        expected_H += total_H.abs()

    batches = [(x[rows], targets[rows]) for rows in torch.split(torch.arange(len(x)), 2)]
    found = hidden_unit_importance(WithTargets(model), iter(batches), loss=lambda out, _: out[1])
    assert list(found) == ["model.0"]
    torch.testing.assert_close(found["model.0"], expected_H)
    assert all(parameter.grad is None for parameter in model.parameters())


class WithTargets(nn.Module):
    """Gives its output and the loss that belongs to it, as models of transformers do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, targets: Tensor) -> Any:
        output = self.model(x)
        return output, (output - targets).square().sum((1, 2))


class Twice(nn.Module):
    """One layer, run twice; as rows of sequences one after the other where `flat`."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1) if self.flat else x
        output: Tensor = self.block(rows + self.block(rows))
        return output.reshape(x.shape)


@pytest.mark.parametrize("flat", [False, True])
def test_importance_of_a_layer_that_runs_twice(flat: bool) -> None:  # noqa: FBT001
    model, x = Twice(flat=flat).double(), torch.randn(4, 3, DIM, dtype=torch.float64)
    expected_H = torch.zeros(HIDDEN, dtype=torch.float64)
    for example in x:
        copied = copy.deepcopy(model)
        copied(example[None]).square().sum().backward()
        total_H = torch.zeros_like(expected_H)
        for weight, axis in ((copied.block.wide.weight, 1), (copied.block.narrow.weight, 0)):
            assert weight.grad is not None
            total_H += (weight.detach() * weight.grad).sum(axis)
        expected_H += total_H.abs()
    found = hidden_unit_importance(model, [x], loss=lambda out, _: out.square().sum())
    torch.testing.assert_close(found["block"], expected_H)


def test_hidden_states_of_another_order_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (7, 3)), Block())
    with pytest.raises(ValueError, match="must have examples along the first axis of all hidden"):
        hidden_unit_importance(
            model, [torch.randn(3, 7, DIM)], loss=lambda out, _: out.square().sum()
        )


def test_frozen_weights_have_an_importance() -> None:
    model = Model().requires_grad_(requires_grad=False)
    batch = token_batch()
    found = hidden_unit_importance(model, [batch], loss=lambda output, _: output.square().sum())
    assert sorted(found) == ["layers.0", "layers.1", "layers.2.0"]
    assert all(bool((each > 0).any()) for each in found.values())
    named = hidden_unit_importance(
        model, [batch], names="*.1", loss=lambda output, _: output.square().sum()
    )
    assert torch.equal(named["layers.1"], found["layers.1"])
    assert len(named) == 1


def test_importance_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"`batches` must hold batches, .* found none"):
        hidden_unit_importance(Model(), [])
    with pytest.raises(TypeError, match="`loss` must be given"):
        hidden_unit_importance(Model(), [token_batch()])
    with pytest.raises(TypeError, match="`loss` must be given"):
        hidden_unit_importance(nn.Sequential(Block()), [torch.randn(3, DIM)])
    with pytest.raises(ValueError, match="`names` must name dense feed-forward layers"):
        hidden_unit_importance(Model(), [token_batch()], names="nope")
    split = ImportanceSplit({"layer": torch.full((HIDDEN,), torch.nan)}, width=4, num_shared=2)
    with pytest.raises(ValueError, match="must be finite"):
        split.hidden_units(layer(), 3)
