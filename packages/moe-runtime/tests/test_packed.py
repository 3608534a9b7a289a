"""A packed model gives the model's answers, and says what it did."""

import copy
import gc
import weakref

import pytest
import torch
from _reference import (
    ACTIVATIONS,
    DIM,
    ROUTERS,
    draw_gates,
    draw_inputs,
    experts_of,
    make_mixture,
    reference_mixture,
    stacks_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_runtime import (
    Experts,
    MixtureOfExperts,
    PackedExperts,
    hard_routing,
    pack_experts,
)
from moe_runtime import _packed as packed_module
from moe_runtime._mixture import run_experts

WEIGHTS = pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
NAME = pytest.mark.parametrize("name", sorted(ROUTERS))
# Of the largest entry, through two layers.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.03, "int8": 0.08}


def compare(experts: Experts, weights: str, *, num_rows: int, num_gates: int = 1) -> None:
    """Compare both forms of packed experts with the oracle."""
    x_TD = torch.randn(num_rows, experts.in_features)
    weights_GTE = draw_gates(num_gates, num_rows, experts.num_experts).float()
    stacks = [stack.detach().double() for stack in stacks_of(experts)]
    wanted = reference_mixture(x_TD.double(), weights_GTE.double(), stacks, experts.activations)
    scale = max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    packed = PackedExperts(experts, weights)
    for kernel in ("sorted", "dense"):
        got = run_experts(packed, x_TD, weights_GTE, kernel)
        assert got.dtype is torch.float32
        tolerance = TOLERANCES[weights] * scale
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance)


@WEIGHTS
@pytest.mark.parametrize("num_gates", [1, 2])
@pytest.mark.parametrize("num_experts", [3, 5, 17])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_equals_the_oracle_at_every_size(
    weights: str, num_rows: int, num_experts: int, num_gates: int
) -> None:
    experts = Experts(num_experts, (6, 9, 4), activation="silu")
    compare(experts, weights, num_rows=num_rows, num_gates=num_gates)


@WEIGHTS
@pytest.mark.parametrize("widths", [(6, 4), (6, 380, 360, 4)], ids=["one", "three"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_oracle_for_every_activation_and_depth(
    weights: str, widths: tuple[int, ...], activation: str
) -> None:
    experts = Experts(3, widths, activation=activation, output_activation=activation)
    compare(experts, weights, num_rows=20)


@given(
    num_rows=st.integers(0, 9),
    num_experts=st.integers(1, 6),
    num_gates=st.integers(1, 3),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
)
def test_equals_the_oracle_at_any_shape(
    num_rows: int, num_experts: int, num_gates: int, widths: list[int]
) -> None:
    compare(Experts(num_experts, widths), "float32", num_rows=num_rows, num_gates=num_gates)


@WEIGHTS
def test_many_rows_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    packed = PackedExperts(Experts(2, (6, 380, 360)), weights)
    x_PD, counts_E = torch.randn(100, 6), [37, 63]
    whole = packed(x_PD, counts_E)
    monkeypatch.setattr(packed_module, "ROWS_AT_ONCE", 16)
    tolerance = {"float32": 1e-6, "bfloat16": 0.02, "int8": 0.0}[weights]
    torch.testing.assert_close(packed(x_PD, counts_E), whole, rtol=0, atol=tolerance)


@WEIGHTS
def test_a_row_does_not_depend_on_its_batch(weights: str) -> None:
    mixture = make_mixture("top_k", 4)
    pack_experts(mixture, weights=weights)
    x = torch.randn(50, DIM)
    # One row that a scale shared by the batch would let ruin all others.
    x[7] *= 1e4
    with torch.inference_mode():
        together = mixture(x).output
        alone = torch.cat([mixture(row[None]).output for row in x])
    tolerance = 0.01 if weights == "bfloat16" else 1e-5
    torch.testing.assert_close(alone, together, rtol=tolerance, atol=tolerance)


@NAME
def test_every_router_gives_the_answers_of_the_model(name: str) -> None:
    mixture = make_mixture(name).eval()
    inputs = draw_inputs(name, 3, 4)
    wanted = mixture(*inputs)
    pack_experts(mixture)
    got = mixture(*inputs)
    torch.testing.assert_close(got.output, wanted.output)
    assert torch.equal(got.weights, wanted.weights)
    with hard_routing(mixture):
        assert mixture(*inputs).output.shape == wanted.output.shape


@WEIGHTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_output_has_the_dtype_of_the_model(weights: str, dtype: torch.dtype) -> None:
    mixture = make_mixture("top_k").to(dtype).eval()
    x = torch.randn(9, DIM).to(dtype)
    wanted = mixture(x).output
    pack_experts(mixture, weights=weights)
    got = mixture(x).output
    assert mixture.experts.dtype is got.dtype is dtype
    tolerance = TOLERANCES[weights] + 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.float(), wanted.float(), rtol=0, atol=tolerance)


@WEIGHTS
def test_autocast_changes_nothing(weights: str) -> None:
    packed = PackedExperts(Experts(2, (6, 300, 5)), weights)
    x_PD = torch.randn(20, 6)
    wanted = packed(x_PD, [8, 12]), packed.every(x_PD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x_PD, [8, 12]), wanted[0])
        assert torch.equal(packed.every(x_PD), wanted[1])


@WEIGHTS
@pytest.mark.usefixtures("_threads_restored")
def test_repeats_to_the_bit_with_several_threads(weights: str) -> None:
    torch.set_num_threads(4)
    mixture = MixtureOfExperts(ROUTERS["top_k"](3, 2), Experts(3, (DIM, 380, 360)))
    pack_experts(mixture, weights=weights)
    x = torch.randn(100, DIM)
    with torch.inference_mode():
        wanted = mixture(x).output
        assert all(torch.equal(mixture(x).output, wanted) for _ in range(50))


# Dynamo (torch 2.13) looks at `.grad` of intermediate tensors where a graph breaks, and
# makes an instance of an autograd function to trace it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_with_graph_breaks_to_the_same_answer() -> None:
    torch.compiler.reset()
    mixture = make_mixture("top_k")
    pack_experts(mixture)
    compiled = torch.compile(mixture, backend="aot_eager")
    with torch.no_grad():
        for num_rows in (9, 0):
            x = torch.randn(num_rows, DIM)
            torch.testing.assert_close(compiled(x).output, mixture(x).output)


# --- the report, and what becomes of the original ---------------------------------------------


def make_model() -> nn.Sequential:
    """Two layers that share their experts, as some models do, and one with others."""

    class Layer(nn.Module):
        def __init__(self, mixture: MixtureOfExperts) -> None:
            super().__init__()
            self.mixture = mixture

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.mixture(x).output
            return output

    shared, own = Experts(3, (DIM, 300, DIM)), Experts(4, (DIM, 20, DIM))
    return nn.Sequential(
        *(
            Layer(MixtureOfExperts(ROUTERS["top_k"](each.num_experts, 2), each))
            for each in (shared, shared, own)
        )
    )


@pytest.mark.parametrize(("weights", "share"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.4)])
def test_the_report_counts_bytes_and_measures_the_error(weights: str, share: float) -> None:
    model = make_model()
    num_weights = 3 * (2 * DIM * 300 + 300 + DIM) + 4 * (2 * DIM * 20 + 20 + DIM)
    x = torch.randn(50, DIM)
    with torch.no_grad():
        wanted = model.eval()(x)
        report = pack_experts(model, weights=weights, example_inputs=(x,))
        error = (model(x) - wanted).abs() / wanted.abs().clamp(min=1)
    assert report.bytes_before == 4 * num_weights
    # Of so few inputs the scales are a large part.
    assert report.bytes_after <= share * report.bytes_before
    assert report.largest_error is not None
    assert report.largest_error == pytest.approx(float(error.max()), rel=1e-3, abs=1e-6)
    packed = [module for module in model.modules() if isinstance(module, PackedExperts)]
    # The shared one is packed once.
    assert len(packed) == 2


def test_int8_takes_less_than_3_tenths_of_the_memory() -> None:
    mixture = MixtureOfExperts(ROUTERS["top_k"](3, 2), Experts(3, (DIM, 256, 256, 128)))
    report = pack_experts(mixture, weights="int8")
    assert report.bytes_after < 0.3 * report.bytes_before


@WEIGHTS
def test_the_largest_error_of_one_layer_is_that_of_its_weights(weights: str) -> None:
    mixture = make_mixture("top_k")
    report = pack_experts(mixture, weights=weights, example_inputs=(torch.randn(50, DIM),))
    assert report.largest_error is not None
    assert report.largest_error < TOLERANCES[weights]


def test_without_examples_no_error_is_claimed() -> None:
    assert pack_experts(make_mixture("top_k")).largest_error is None


def test_the_original_weights_are_let_go() -> None:
    mixture = make_mixture("top_k")
    original = experts_of(mixture)
    stacks = [weakref.ref(stack) for stack in stacks_of(original)]
    pack_experts(mixture)
    gc.collect()
    assert [stack() for stack in stacks] == [None] * len(stacks)
    assert len(original.layers) == 0
    assert [name for name, _ in mixture.named_parameters()] == [
        "routers.0.score.weight",
        "routers.0.score.bias",
    ]


def test_a_deep_copy_gives_the_same() -> None:
    mixture = make_mixture("top_k")
    pack_experts(mixture)
    x = torch.randn(9, DIM)
    assert torch.equal(copy.deepcopy(mixture)(x).output, mixture(x).output)


def test_evaluation_and_moving_nowhere_change_nothing() -> None:
    mixture = make_mixture("top_k").train()
    pack_experts(mixture)
    assert not mixture.training
    x = torch.randn(9, DIM)
    wanted = mixture(x).output
    assert torch.equal(mixture.eval().to("cpu").float()(x).output, wanted)


def test_bias_may_be_none() -> None:
    experts = Experts(3, (6, 380, 360))
    wanted = Experts(3, (6, 380, 360))
    wanted.load_state_dict(experts.state_dict())
    for index in range(2):
        experts.layers[index].register_parameter("bias", None)
        nn.init.zeros_(stacks_of(wanted)[2 * index + 1])
    x_PD = torch.randn(20, 6)
    torch.testing.assert_close(
        PackedExperts(experts, "float32")(x_PD, [5, 0, 15]), wanted(x_PD, [5, 0, 15]).detach()
    )
