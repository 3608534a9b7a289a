"""PyTorch's own transformer layers, whose activation is a function and which fuse what they can.

Axes: B sequences, S tokens, D features.
"""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _dense import DIM, HIDDEN
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime import CometRouter, HashRouter, Router, TopKRouter, Watcher, hard_routing
from moe_runtime.convert import (
    CopySplit,
    ImportanceSplit,
    RandomSplit,
    conversion_settings,
    convert,
    convert_like,
    converted_layers,
    find_feed_forwards,
    hidden_unit_importance,
    penalty,
)

EXPERTS = 4


def comet(dim: int) -> Router:
    return CometRouter(dim, EXPERTS, k=1)


def hashed(_dim: int) -> Router:
    return HashRouter(30, EXPERTS)


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(DIM, 2, HIDDEN, **{"batch_first": True, **options})
    fused = layer.self_attn.batch_first and not layer.norm_first and layer.activation_relu_or_gelu
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=bool(fused))


class Classifier(nn.Module):
    """As people write it: what counts is averaged."""

    def __init__(self, layers: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.head = layers, nn.Linear(DIM, 3)

    def forward(self, x_BSD: Tensor, padding_BS: Tensor) -> Tensor:
        states = self.layers(x_BSD, src_key_padding_mask=padding_BS)
        counts_BS1 = ~padding_BS[..., None]
        scores: Tensor = self.head((states * counts_BS1).sum(1) / counts_BS1.sum(1))
        return scores


def padded(num_rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    padding_BS = torch.arange(length) >= torch.tensor([length, 2, 3, 5])[:num_rows, None]
    return torch.randn(num_rows, length, DIM), padding_BS


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("activation", "name"),
    [
        ("relu", "relu"),
        ("gelu", "gelu"),
        (F.silu, "silu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
    ],
    ids=["relu", "gelu", "function", "module", "lambda"],
)
def test_layers_are_found_and_left_as_they_were(
    activation: Any, name: str, *, batch_first: bool
) -> None:
    model = encoder(activation=activation, batch_first=batch_first)
    before, attributes = str(model), [dict(module.__dict__) for module in model.modules()]
    found = find_feed_forwards(model, torch.randn(3, 5, DIM))
    assert [(each.name, each.activation, each.obstacle) for each in found] == [
        ("layers.0", name, None),
        ("layers.1", name, None),
    ]
    assert found[0].between == ("layers.0.activation", "layers.0.dropout")
    assert found[0].dropout == pytest.approx(0.1)
    assert str(model) == before
    assert [module.__dict__ for module in model.modules()] == attributes


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_copies_give_what_the_fused_layers_gave(*, norm_first: bool, masked: bool) -> None:
    model = Classifier(encoder(norm_first=norm_first, activation="gelu")).eval()
    x_BSD, padding_BS = padded()
    padding_BS &= masked
    with torch.no_grad():
        dense = model(x_BSD, padding_BS)
        report = convert(model, (x_BSD, padding_BS), router=comet, split=CopySplit())
        torch.testing.assert_close(model(x_BSD, padding_BS), dense)
    assert [layer.name for layer in report.layers] == ["layers.layers.0", "layers.layers.1"]
    assert report.num_tokens == int((~padding_BS).sum())
    assert report.output_error < 1e-5


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("padded_with", [True, -torch.inf, torch.finfo(torch.float32).min, -1e4])
def test_padding_is_not_routed(*, padded_with: bool | float, batch_first: bool) -> None:
    model = encoder(batch_first=batch_first).eval()
    x_BSD, padding_BS = padded()
    x = x_BSD if batch_first else x_BSD.transpose(0, 1)
    convert(model, x, router=lambda dim: TopKRouter(dim, EXPERTS, k=2), split=RandomSplit())
    added = torch.zeros(4, 6).masked_fill(padding_BS, float(padded_with))
    mask = padding_BS if padded_with is True else added
    with Watcher(model) as watcher:
        model(x, src_key_padding_mask=mask)
    assert all(float(load.sum()) == pytest.approx(2.0) for load in watcher.loads().values())
    mixture = converted_layers(model)[0].mixture
    seen: list[Tensor] = []
    mixture.register_forward_hook(lambda _mixture, args, _output: seen.append(args[2]))
    model(x, src_key_padding_mask=mask)
    model(x)
    assert torch.equal(seen[0], ~padding_BS if batch_first else ~padding_BS.T)
    assert seen[1] is None, "the next call is told anew"


def test_padding_changes_neither_penalty_nor_the_rest() -> None:
    model = Classifier(encoder(dropout=0.0))
    x_BSD, padding_BS = padded()
    split = RandomSplit()
    convert(model, (x_BSD, padding_BS), router=lambda d: TopKRouter(d, EXPERTS, k=2), split=split)
    scores, cost = model(x_BSD, padding_BS), penalty(model)
    longer = torch.cat([x_BSD, torch.randn(4, 3, DIM)], 1)
    torch.testing.assert_close(model(longer, F.pad(padding_BS, (0, 3), value=True)), scores)
    torch.testing.assert_close(penalty(model), cost)
    (scores.square().sum() + cost).backward()
    assert all(each.grad is not None for each in model.parameters())


def test_encoder_and_decoder_of_a_whole_transformer() -> None:
    model = nn.Transformer(DIM, 2, 1, 1, HIDDEN, batch_first=True).eval()
    source, padding = padded()
    target, target_padding = torch.randn(4, 3, DIM), torch.zeros(4, 3, dtype=torch.bool)
    target_padding[1:, 2] = True
    given = {
        "src": source, "tgt": target,
        "src_key_padding_mask": padding, "memory_key_padding_mask": padding,
        "tgt_key_padding_mask": target_padding,
    }  # fmt: skip
    dense = model(**given)
    report = convert(model, given, router=comet, split=CopySplit())
    assert [layer.name for layer in report.layers] == ["encoder.layers.0", "decoder.layers.0"]
    torch.testing.assert_close(model(**given)[~target_padding], dense[~target_padding])
    of_encoder, of_decoder = converted_layers(model)
    seen: dict[str, Tensor] = {}
    for name, layer in (("src", of_encoder), ("tgt", of_decoder)):
        layer.mixture.register_forward_pre_hook(
            lambda _mixture, args, name=name: seen.update({name: args[2]})
        )
    model(**given)
    assert torch.equal(seen["src"], ~padding)
    assert torch.equal(seen["tgt"], ~target_padding)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301 - our own
def test_copies_of_the_model_are_told_too(again: Callable[[nn.Module], nn.Module]) -> None:
    model = Classifier(encoder()).eval()
    batch = padded()
    convert(model, batch, router=comet, split=RandomSplit())
    other = again(model)
    assert torch.equal(other(*batch), model(*batch))


def test_another_model_is_converted_like_it() -> None:
    batch, split = padded(), RandomSplit()
    model, other = Classifier(encoder()).eval(), Classifier(encoder()).eval()
    convert(model, batch, router=comet, split=split)
    convert_like(other, conversion_settings(model))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(*batch), model(*batch))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model, batch = Classifier(encoder()).eval(), padded()
    dense = copy.deepcopy(model)
    importance = {f"layers.layers.{i}": torch.zeros(HIDDEN) for i in range(2)}
    split = ImportanceSplit(importance, width=HIDDEN + 1, num_shared=1)
    with pytest.raises(ValueError, match="width"):
        convert(model, batch, router=comet, split=split)
    assert str(model) == str(dense)
    assert model.layers.use_nested_tensor
    assert model.layers.layers[0].activation_relu_or_gelu == 1
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(*batch), dense(*batch)), "the fused way again"


def test_importance_of_frozen_layers_with_padding() -> None:
    model, (x_BSD, padding_BS) = Classifier(encoder()), padded()

    def importance() -> dict[str, Tensor]:
        def loss(scores: Tensor, _batch: Any) -> Tensor:
            return scores.square().sum(1)

        return hidden_unit_importance(model, [(x_BSD, padding_BS)], loss=loss)

    expected = importance()
    model.requires_grad_(requires_grad=False)
    found = importance()
    assert list(found) == ["layers.layers.0", "layers.layers.1"]
    for name, each in found.items():
        torch.testing.assert_close(each, expected[name])


class SequencesSecond(nn.Module):
    """Ids (B, S) for layers that take (S, B, D), and a score a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(30, DIM), encoder(batch_first=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        states_SBD: Tensor = self.layers(self.embedding(input_ids).transpose(0, 1))
        return states_SBD.mean((0, 2)).square()


@pytest.mark.parametrize("shape", [(3, 5), (5, 5)])
def test_importance_where_sequences_are_second(shape: tuple[int, int]) -> None:
    model, ids_BS = SequencesSecond().double().eval(), torch.randint(30, shape)
    found = hidden_unit_importance(model, [ids_BS], loss=lambda scores, _batch: scores)
    by_example = [
        hidden_unit_importance(model, [ids_BS[row : row + 1]], loss=lambda scores, _batch: scores)
        for row in range(shape[0])
    ]
    for name, each in found.items():
        torch.testing.assert_close(each, torch.stack([row[name] for row in by_example]).sum(0))


def test_losses_that_are_not_those_of_the_examples_are_refused() -> None:
    x_SBD = torch.randn(5, 3, DIM)
    with pytest.raises(ValueError, match="one for each example along the first axis"):
        hidden_unit_importance(
            encoder(batch_first=False), [x_SBD], loss=lambda states, _batch: states.sum((0, 2))
        )
    with pytest.raises(TypeError, match="`batches` must be several"):
        hidden_unit_importance(encoder(), x_SBD)


@pytest.mark.parametrize("shape", [(4, 4), (4, 6)])
def test_ids_that_are_arranged_otherwise_than_the_states_are_refused(
    shape: tuple[int, int],
) -> None:
    batch = {"input_ids": torch.randint(30, shape)}
    with pytest.raises(ValueError, match=r"one entry a token of .* sequences first"):
        convert(SequencesSecond(), batch, router=hashed, split=RandomSplit())


def test_as_many_sequences_as_tokens_are_no_obstacle() -> None:
    x_BSD, padding_BS = torch.randn(5, 5, DIM), torch.arange(5).expand(5, 5) >= 3
    model = Classifier(encoder()).eval()
    assert convert(model, (x_BSD, padding_BS), router=comet, split=CopySplit()).num_tokens == 4 * 3
    assert model(x_BSD, padding_BS).shape == (5, 3)


class Twice(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = encoder()

    def forward(self, x: Tensor, padding: Tensor, times: int = 1) -> Tensor:
        if times > 1:
            x = self(x, padding, times - 1)
        states: Tensor = self.layers(x, src_key_padding_mask=padding)
        return states


def test_a_model_may_call_itself() -> None:
    model, x = Twice().eval(), torch.randn(2, 6, DIM)
    padding = torch.arange(6).expand(2, 6) >= 4
    dense = model(x, padding, 2)
    convert(model, (x, padding), router=comet, split=CopySplit())
    with Watcher(model) as watcher:
        torch.testing.assert_close(model(x, padding, 2)[:, :4], dense[:, :4])
    rows = {name: each for name, each in watcher.compute().items() if name.endswith("/rows")}
    assert set(rows.values()) == {16}, "padding is routed in neither call"


class Causal(nn.Module):
    """Takes a mask of the layers and one of the tokens."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.layers = encoder(batch_first=batch_first)

    def forward(self, x: Tensor, mask: Tensor | None = None, padding: Any = None) -> Tensor:
        states: Tensor = self.layers(x, mask=mask, src_key_padding_mask=padding)
        return states


@pytest.mark.parametrize("num_sequences", [1, 4, 6])
def test_a_square_mask_of_the_layers_is_no_obstacle(num_sequences: int) -> None:
    model, x = Causal().eval(), torch.randn(num_sequences, 6, DIM)
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    dense = model(x, causal)
    report = convert(model, (x, causal), router=comet, split=CopySplit())
    assert report.num_tokens == 6 * num_sequences
    torch.testing.assert_close(model(x, causal), dense)


def test_square_padding_beside_sequences_that_are_second_is_no_obstacle() -> None:
    padding = torch.arange(6).expand(6, 6) >= 4
    batch = {"x": torch.randn(6, 6, DIM), "padding": padding}
    report = convert(Causal(batch_first=False), batch, router=comet, split=CopySplit())
    assert report.num_tokens == 24


def test_padding_does_not_count_in_the_difference_of_outputs() -> None:
    x_BSD, padding_BS = padded()
    given = {"src": x_BSD, "src_key_padding_mask": padding_BS}
    report = convert(encoder(), given, router=comet, split=CopySplit())
    assert report.output_error < 1e-5


def test_it_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    from moe_runtime.onnx import Session, export  # noqa: PLC0415 - needs the extra

    model, batch = Classifier(encoder(activation="gelu")).eval(), padded()
    convert(model, batch, router=comet, split=RandomSplit())
    export(
        model, batch, tmp_path, hard=True, input_names=["x", "padding"], output_names=["scores"],
        dynamic_axes={name: {1: "length"} for name in ("x", "padding")},
    )  # fmt: skip
    session = Session(tmp_path / "model.onnx")
    for num_rows, length in ((1, 4), (3, 7)):
        x_BSD, padding_BS = padded(num_rows, length)
        scores = session.run(x=x_BSD.numpy(), padding=padding_BS.numpy())["scores"]
        with torch.no_grad(), hard_routing(model):
            expected = model(x_BSD, padding_BS)
        torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-5)
