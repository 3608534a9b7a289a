"""Feed-forward layers are found by what modules compute."""

import copy

import pytest
import torch
from _dense import DIM, HIDDEN, Block, Model, token_batch, transformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime.convert import find_feed_forwards

INTO, OUT = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)


def test_layers_of_every_form_are_found_and_a_head_is_not() -> None:
    found = find_feed_forwards(Model(), token_batch())
    assert [(each.name, each.activation, each.whole) for each in found] == [
        ("layers.0", "relu", False),
        ("layers.1", "geglu_tanh", True),
        ("layers.2.0", "silu", True),
    ]
    first, second, third = found
    assert (first.up, first.down) == ("layers.0.intermediate.0", "layers.0.output.dense")
    assert first.between == ("layers.0.intermediate.1", "layers.0.dropped")
    assert first.dropout == pytest.approx(0.25)
    assert (second.gate, second.up) == ("layers.1.gate", "layers.1.up")
    assert all(each.obstacle is None for each in found)
    assert third.output_dropout == 0.0, "what follows the module stays where it is"


def test_names_are_a_pattern() -> None:
    found = find_feed_forwards(Model(), token_batch(), names="layers.[12]*")
    assert [each.name for each in found] == ["layers.1", "layers.2.0"]


def test_a_model_is_left_as_it_was() -> None:
    model = Model().train()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    find_feed_forwards(model, token_batch())
    torch.set_rng_state(generator)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU()], ids=str)
def test_each_activation_in_each_dtype(activation: nn.Module, dtype: torch.dtype) -> None:
    block = nn.Sequential(nn.Linear(DIM, HIDDEN), activation, nn.Linear(HIDDEN, DIM)).to(dtype)
    (found,) = find_feed_forwards(block, torch.randn(20, DIM, dtype=dtype))
    names = {"ReLU()": "relu", "SiLU()": "silu", "GELU(approximate='none')": "gelu"}
    assert found.activation == names.get(str(activation), "gelu_tanh")
    assert found.between == ("1",)


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(INTO, OUT),
        nn.Sequential(INTO, nn.Tanh(), OUT),
        nn.Sequential(INTO, nn.ReLU(), nn.Linear(HIDDEN, DIM + 1)),
        nn.Sequential(INTO, nn.ReLU(), nn.LayerNorm(HIDDEN), OUT),
        nn.MultiheadAttention(DIM, 2),
    ],
    ids=["no activation", "tanh", "other width", "norm between", "attention"],
)  # fmt: skip
def test_what_computes_something_else_is_not_found(other: nn.Module) -> None:
    x = torch.randn(1, DIM)  # with one token, attention's output is its value
    batch = (x, x, x) if isinstance(other, nn.MultiheadAttention) else x
    assert find_feed_forwards(other, batch) == []


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Scaled(nn.Module):
    """A layer whose output is scaled by what is learned, and 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(DIM))
        self.into, self.act, self.out = nn.Linear(DIM, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.scale * self.out(self.act(self.into(x)))
        return output


class Drops(nn.Module):
    """A layer with dropout by a function, where `place` says."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.into, self.act, self.out = nn.Linear(DIM, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.into(self.drop(x, "input")))
        return self.drop(self.out(self.drop(hidden, "hidden")), "output")

    def drop(self, x: Tensor, place: str) -> Tensor:
        return F.dropout(x, 0.5, training=self.training and place == self.place)


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Sequential(*layers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [QuickGELU(), nn.Hardswish(), nn.LeakyReLU()], ids=str)
def test_a_function_that_is_near_is_not_taken(activation: nn.Module, dtype: torch.dtype) -> None:
    model = chain(nn.Linear(DIM, HIDDEN), activation, nn.Linear(HIDDEN, DIM)).to(dtype)
    assert find_feed_forwards(model, torch.randn(64, DIM, dtype=dtype)) == []


def test_a_clipped_activation_shows_on_larger_inputs() -> None:
    model = chain(nn.Linear(DIM, HIDDEN), nn.ReLU6(), nn.Linear(HIDDEN, DIM))
    (found,) = find_feed_forwards(model, torch.randn(9, DIM))
    assert str(found.obstacle).startswith("it is no exact feed-forward layer on other inputs")


@pytest.mark.parametrize(
    "x", [torch.zeros(5, DIM), torch.zeros(0, DIM), torch.full((5, DIM), torch.nan)]
)
def test_what_proves_nothing_finds_nothing(x: Tensor) -> None:
    model = chain(nn.Linear(DIM, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, DIM, bias=False))
    assert find_feed_forwards(model, x) == []


def test_a_module_with_parameters_of_its_own_is_not_replaced_whole() -> None:
    (found,) = find_feed_forwards(nn.Sequential(Scaled()), torch.randn(9, DIM))
    assert not found.whole
    assert found.between == ("0.act",)
    assert found.obstacle is None


def test_dropout_before_the_layer_stays() -> None:
    model = chain(nn.Dropout(0.3), nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM))
    (found,) = find_feed_forwards(model, torch.randn(9, DIM))
    assert not found.whole
    assert (found.dropout, found.output_dropout, found.obstacle) == (0.0, 0.0, None)


@pytest.mark.parametrize("place", ["input", "hidden", "output"])
def test_dropout_that_no_module_shows_is_an_obstacle(place: str) -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(DIM), Drops(place)), torch.randn(9, DIM)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    (found,) = find_feed_forwards(model, x)
    assert found.obstacle == "training changes its states, and by no torch.nn.Dropout"
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_activation_of_two_layers_is_an_obstacle() -> None:
    act = nn.ReLU()
    first, second = (nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)), (
        nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
    )  # fmt: skip
    model = nn.Sequential(first[0], act, first[1], second[0], act, second[1])
    found = find_feed_forwards(model, torch.randn(9, DIM))
    assert [each.name for each in found] == ["0", "3"], "named apart by their first maps"
    assert found[0].obstacle == "one of its modules is called elsewhere too"
    assert str(found[1].obstacle).startswith("its activation is no module of its own")


def test_the_nearest_of_equal_maps_is_taken() -> None:
    one = Block()
    twins = nn.ModuleList([one, copy.deepcopy(one)])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twins = twins

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = twins[0](x) + twins[1](x)
            return output

    found = find_feed_forwards(Both(), torch.randn(9, DIM))
    assert [each.name for each in found] == ["twins.0", "twins.1"]


def test_a_layer_that_is_the_model_says_so() -> None:
    (found,) = find_feed_forwards(Block(), torch.randn(4, DIM))
    assert str(found.obstacle).startswith("it is the whole model")


def test_a_layer_that_is_called_twice_is_found_once() -> None:
    block = Block()
    assert len(find_feed_forwards(nn.Sequential(block, block), torch.randn(4, DIM))) == 1


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["bert.encoder.layer.0", "bert.encoder.layer.1"]),
        ("gpt2", ["transformer.h.0.mlp", "transformer.h.1.mlp"]),
        ("llama", ["model.layers.0.mlp", "model.layers.1.mlp"]),
        (
            "distilbert",
            ["distilbert.transformer.layer.0.ffn", "distilbert.transformer.layer.1.ffn"],
        ),
        (
            "t5",
            ["encoder.block.0.layer.1.DenseReluDense", "decoder.block.0.layer.2.DenseReluDense"],
        ),
    ],
)
def test_transformers_of_every_family(family: str, names: list[str]) -> None:
    model, batch = transformer(family, dropout=0.1)
    found = find_feed_forwards(model, batch)
    assert [each.name for each in found] == names
    assert all(each.obstacle is None for each in found)
    expected = {"gpt2": (0.0, 0.1), "distilbert": (0.0, 0.1), "t5": (0.1, 0.0)}
    assert (found[0].dropout, found[0].output_dropout) == expected.get(family, (0.0, 0.0))
