"""Dense layers become mixtures of parts of them.

Axes: T rows, E experts, H hidden units, U those of an expert.
"""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from _dense import DIM, HIDDEN, VOCABULARY, Block, GatedBlock, Model, token_batch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from moe_runtime import (
    CometRouter,
    HashRouter,
    Router,
    SoftmaxRouter,
    TopKRouter,
    Watcher,
    hard_routing,
)
from moe_runtime._checkpoint import CheckpointError
from moe_runtime.convert import (
    CopySplit,
    DenseLayer,
    ImportanceSplit,
    KMeansSplit,
    RandomSplit,
    Split,
    conversion_settings,
    convert,
    convert_like,
    converted_layers,
    penalty,
)

EXPERTS = 4


def comet(dim: int) -> Router:
    return CometRouter(dim, EXPERTS, k=1)


def hashed(_dim: int) -> Router:
    return HashRouter(VOCABULARY, EXPERTS)


@pytest.mark.parametrize("router", [comet, hashed, lambda dim: TopKRouter(dim, EXPERTS, k=2)])
def test_copies_of_the_layer_give_what_it_gave(router: Callable[[int], Router]) -> None:
    model, batch = Model().eval(), token_batch()
    dense = model(**batch)
    report = convert(model, batch, router=router, split=CopySplit())
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch)[real], dense[real])
    assert all(each.error < 1e-6 for each in report.layers)
    assert report.output_error < 1e-6
    assert report.num_tokens == int(real.sum())
    assert report.num_parameters > 2 * report.num_parameters_before


@pytest.mark.parametrize("split", [RandomSplit(), KMeansSplit()])
def test_all_parts_together_are_the_layer(split: Split) -> None:
    report = convert(Model().double(), token_batch(), router=comet, split=split)
    assert [each.expert_units for each in report.layers] == [HIDDEN // EXPERTS] * 3
    for each in report.layers:
        assert each.kept == 1.0
        assert each.all_experts_error is not None
        assert each.all_experts_error < 1e-12
        assert each.error > 0.1


@pytest.mark.parametrize(
    "block", [Block(), Block(bias=False), GatedBlock()], ids=["plain", "without bias", "gated"]
)
def test_a_mixture_equals_a_loop_over_the_dense_weights(block: nn.Module) -> None:
    units_EU = torch.tensor([[0, 1, 2], [1, 5, 4], [23, 8, 1]])

    class Given:
        def hidden_units(self, _layer: DenseLayer, _num_experts: int, /) -> Tensor:
            return units_EU

    dense = copy.deepcopy(block).double()
    model, x_TD = nn.Sequential(dense), torch.randn(7, DIM, dtype=torch.float64)
    router = SoftmaxRouter(DIM, 3, k=1)
    convert(model, x_TD, router=lambda _dim: router, split=Given())
    weights_TE = router(x_TD).weights
    expected = torch.zeros_like(x_TD)
    up, down = [each for each in dense.children() if isinstance(each, nn.Linear)][-2:]
    for row, x in enumerate(x_TD):
        for expert, units in enumerate(units_EU.tolist()):
            output = torch.zeros(DIM, dtype=torch.float64)
            for unit in units:
                value = up.weight[unit] @ x + _bias(up)[unit]
                if isinstance(dense, GatedBlock):
                    value = value * F.gelu(dense.gate.weight[unit] @ x, approximate="tanh")
                else:
                    value = F.silu(value)
                output += value * down.weight[:, unit]
            output += _bias(down)
            expected[row] += weights_TE[row, expert] * output
    torch.testing.assert_close(model(x_TD), expected)


def _bias(layer: nn.Linear) -> Tensor:
    bias: Tensor | None = getattr(layer, "bias", None)
    return layer.weight.new_zeros(layer.out_features) if bias is None else bias


def test_dropout_stays_where_it_was() -> None:
    model = Model()
    convert(model, token_batch(), router=comet, split=RandomSplit())
    inside, outside = converted_layers(model)[0], model.get_submodule("layers.2.1")
    assert inside.mixture.experts.dropout == pytest.approx(0.25)
    assert isinstance(model.get_submodule("layers.0.dropped"), nn.Identity)
    assert isinstance(outside, nn.Dropout)


def test_modes_dtype_and_random_numbers_are_kept() -> None:
    model = Model().to(torch.bfloat16).train()
    model.layers[1].eval()
    convert(model, token_batch(), router=comet, split=RandomSplit())
    assert [each.training for each in converted_layers(model)] == [True, False, True]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_padding_changes_nothing() -> None:
    model, batch = Model().eval(), token_batch(4)
    convert(model, batch, router=comet, split=RandomSplit())
    model(**batch)
    before = penalty(model)
    other = {**batch, "input_ids": batch["input_ids"].where(batch["attention_mask"] != 0, 7)}
    model(**other)
    torch.testing.assert_close(penalty(model), before)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**other)[real], model(**batch)[real])
    assert _rows(model, batch) == {int(real.sum())}


def _rows(model: nn.Module, batch: dict[str, Tensor]) -> set[float]:
    """Rows that each mixture computed."""
    with Watcher(model) as watcher:
        model(**batch)
    return {value for name, value in watcher.compute().items() if name.endswith("/rows")}


def test_the_penalty_is_that_of_the_last_call() -> None:
    model, batch = Model().eval(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit())
    model(**batch)
    once = penalty(model)
    model(**batch)
    torch.testing.assert_close(penalty(model), once)
    assert once.requires_grad
    assert once > 0
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match="`model` must be a converted model that was called"):
        penalty(copied)
    copied(**batch)
    torch.testing.assert_close(penalty(copied), once)


def test_several_conversions_of_one_model() -> None:
    model, batch = Model(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit(), names="layers.0")
    report = convert(model, batch, router=hashed, split=CopySplit(), names="layers.[12]*")
    assert [each.name for each in report.layers] == ["layers.1", "layers.2.0"]
    layers = converted_layers(model)
    assert [type(each.mixture.routers[0]) for each in layers] == [
        CometRouter,
        HashRouter,
        HashRouter,
    ]
    assert len({id(each.tokens) for each in layers}) == 1
    assert len(model._forward_pre_hooks) == 1
    again = Model()
    convert_like(again, conversion_settings(model))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(**batch), model.eval()(**batch))


def test_settings_are_json_and_make_a_model_like_it() -> None:
    model, batch = Model().eval(), token_batch()
    convert(model, batch, router=comet, split=KMeansSplit())
    settings = json.loads(json.dumps(conversion_settings(model)))
    again = Model().eval()
    convert_like(again, settings)
    again.load_state_dict(model.state_dict())
    with hard_routing(model), hard_routing(again):
        assert torch.equal(again(**batch), model(**batch))
    settings["format_version"] = 2
    with pytest.raises(CheckpointError, match="`settings` must be of format_version 1, got 2"):
        convert_like(Model(), settings)


def test_report_is_a_table() -> None:
    text = str(convert(Model(), token_batch(), router=comet, split=RandomSplit()))
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert lines[1].startswith("layers.0 ")
    assert "100%" in lines[1]
    assert "errors are relative, on 22 tokens" in text


class Failing:
    def hidden_units(self, layer: DenseLayer, num_experts: int, /) -> Tensor:
        if layer.name == "layers.2.0":
            return torch.zeros(num_experts, 2)
        return torch.zeros(num_experts, 2, dtype=torch.int64)


class TooHigh:
    def hidden_units(self, _layer: DenseLayer, num_experts: int, /) -> Tensor:
        return torch.full((num_experts, 2), HIDDEN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "nothing"}, r"`names` must name feed-forward .*\['layers.0', .* got 'nothing'"),
        ({"router": lambda dim: CometRouter(dim, 5, k=1)}, "`num_experts` must divide the 24"),
        ({"router": lambda dim: CometRouter(dim + 1, 4, k=1)}, "over 9 features: `x` has shape"),
        (
            {"split": Failing()},
            r"must be integers of shape \(num_experts=4, U\), got torch.float32",
        ),
        ({"split": TooHigh()}, r"must be in \[0, 24\) for 'layers.0', got 24..24"),
        ({"split": ImportanceSplit({}, 8, 4)}, r"`importance` must have 'layers.0', got \[\]"),
        ({"split": ImportanceSplit({}, 16, 4)}, "4 experts find num_shared"),
        ({"split": ImportanceSplit({"layers.0": torch.ones(3)}, 8, 4)}, r"must have shape \(24,\)"),
        ({"kernel": "fast"}, "`kernel` must be one of"),
        ({"mask_argument": "padding"}, "`mask_argument` must name an argument .* got 'padding'"),
        ({"router": hashed, "ids_argument": None}, "the ids of the tokens must be given"),
    ],
)
def test_what_does_not_fit_leaves_the_model_as_it_was(
    options: dict[str, object], message: str
) -> None:
    model, batch = Model(), token_batch()
    modules = dict(model.named_modules())
    before = model.eval()(**batch)
    arguments = {"router": comet, "split": RandomSplit(), **options}
    with pytest.raises(ValueError, match=message):
        convert(model, batch, **arguments)  # type: ignore[arg-type]
    assert dict(model.named_modules()) == modules
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert torch.equal(model(**batch), before)


class ReadsWeights(nn.Module):
    """Fails once its linear map is no linear map any more, in its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.block(x) + self.block.get_parameter("0.weight").mean()
        return output


def test_a_model_that_reads_a_layers_weights_is_put_back() -> None:
    model, x = ReadsWeights(), torch.randn(5, DIM)
    before = model(x)
    with pytest.raises(AttributeError, match=r"is not an nn.Module|has no attribute"):
        convert(model, x, router=comet, split=RandomSplit())
    assert torch.equal(model(x), before)
    assert not converted_layers(model)


def test_a_layer_with_several_names_is_replaced_at_all_of_them() -> None:
    block = nn.Sequential(nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
    model, x = (
        nn.ModuleDict({"again": block, "chain": nn.Sequential(block, block)}),
        torch.randn(5, DIM),
    )
    model.forward = model["chain"].forward
    dense = model(x)
    convert(model, x, router=comet, split=CopySplit())
    torch.testing.assert_close(model(x), dense)
    assert model["again"] is model.get_submodule("chain.0") is model.get_submodule("chain.1")
    model(x)
    assert len(converted_layers(model)) == 1


def test_a_mask_of_other_tokens_is_refused() -> None:
    model, batch = Model(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit())
    with pytest.raises(ValueError, match="`attention_mask` must have one entry a token"):
        model(batch["input_ids"], torch.ones(3, 4))
    model(batch["input_ids"])  # and nothing of that call is left
    assert penalty(model) > 0


def test_frozen_layers_stay_frozen() -> None:
    model = Model().requires_grad_(requires_grad=False)
    convert(model, token_batch(), router=comet, split=RandomSplit())
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained
    assert all("routers" in name for name in trained)


def test_two_towers_have_both_penalties() -> None:
    towers, batch = nn.ModuleList([Model().eval(), Model().eval()]), token_batch()
    for tower in towers:
        convert(tower, batch, router=comet, split=RandomSplit())
        with pytest.raises(ValueError, match="must be a converted model that was called"):
            penalty(tower)
        tower(**batch)
    torch.testing.assert_close(penalty(towers), penalty(towers[0]) + penalty(towers[1]))


class Outer(nn.Module):
    """A model around another that is told ids alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.last = Block()

    def forward(self, **batch: Tensor) -> Tensor:
        x = self.inner.get_submodule("embedding")(batch["input_ids"])
        output: Tensor = self.last(x).sum(-1, keepdim=True) + self.inner(**batch)
        return output


def test_a_model_around_a_converted_one() -> None:
    model, batch = Outer(Model()).eval(), token_batch()
    convert(model.inner, batch, router=comet, split=RandomSplit())
    report = convert(model, batch, router=comet, split=CopySplit())
    assert [each.name for each in report.layers] == ["last"]
    assert report.num_tokens == int(batch["attention_mask"].sum())
    model(**batch)
    every = penalty(model)
    model.inner(**batch)
    assert every > penalty(model.inner) > 0


def test_a_hash_router_without_ids_says_how_to_give_them() -> None:
    model, x = nn.Sequential(nn.Identity(), Block()), torch.randn(2, 5, DIM)
    with pytest.raises(ValueError, match=r"router_input|`ids_argument` of `convert`"):
        convert(model, x, router=hashed, split=CopySplit())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": CometRouter(DIM, EXPERTS, k=1)}, "`router` must be a function"),
        ({"router": nn.Linear}, r"`router\(dim\)` must be a Router"),
        ({"split": RandomSplit}, "`split` must be a split, such as RandomSplit"),
        ({"split": "random"}, "`split` must be a split"),
        ({"names": ["layers.0"]}, "`names` must be a pattern of names"),
    ],
)
def test_what_is_no_argument_is_named(options: dict[str, object], message: str) -> None:
    arguments = {"router": comet, "split": RandomSplit(), **options}
    if options.get("router") is nn.Linear:
        arguments["router"] = lambda dim: nn.Linear(dim, 4)
    with pytest.raises(TypeError, match=message):
        convert(Model(), token_batch(), **arguments)  # type: ignore[arg-type]


def test_one_router_for_several_layers_is_refused() -> None:
    router = CometRouter(DIM, EXPERTS, k=1)
    with pytest.raises(ValueError, match="must make a new router for each layer"):
        convert(Model(), token_batch(), router=lambda _dim: router, split=RandomSplit())


def test_a_second_conversion_of_the_same_layers_says_so() -> None:
    model, batch = Model(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit())
    with pytest.raises(ValueError, match=r"none was found .* It has been converted already"):
        convert(model, batch, router=comet, split=RandomSplit())


@pytest.mark.parametrize("missing", ["layers", "mask_argument"])
def test_settings_that_do_not_fit_leave_a_model_as_it_was(missing: str) -> None:
    model, batch = Model(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit())
    settings = conversion_settings(model)
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="do not fit the model"):
        convert_like(other, settings)
    del settings[missing]
    again = Model()
    with pytest.raises(CheckpointError, match=f"do not fit the model: '{missing}'"):
        convert_like(again, settings)
    for each in (other, again):
        assert not converted_layers(each)
        assert not each._forward_hooks


def test_a_model_in_another_precision_is_made_like_it() -> None:
    model, batch = Model().double(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit())
    again = Model().double()
    convert_like(again, conversion_settings(model))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(**batch), model.eval()(**batch))


def test_padding_counts_where_no_argument_is_named() -> None:
    model, batch = Model(), token_batch()
    convert(model, batch, router=comet, split=RandomSplit(), mask_argument=None)
    assert _rows(model, batch) == {batch["input_ids"].numel()}
