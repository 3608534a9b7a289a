"""Feed-forward layers are found by what modules compute."""

import pytest
import torch
from _dense import DIM, HIDDEN, Block, Model, token_batch, transformer
from torch import nn

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


def test_what_cannot_be_replaced_says_why() -> None:
    layer = nn.TransformerEncoderLayer(DIM, 2, HIDDEN, batch_first=True)
    (found,) = find_feed_forwards(layer, torch.randn(2, 5, DIM))
    assert found.obstacle == (
        "its activation is no module, and no module computes it and nothing else"
    )


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
