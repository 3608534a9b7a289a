"""One packed map is the map and its activation, within what its weights allow."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from _reference import ACTIVATIONS, GATED
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_runtime import _packed_linear, _products
from moe_runtime._packed_linear import (
    Int8Linear,
    OneDnnLinear,
    PlainLinear,
    has_onednn,
    integer_product,
    pack_linear,
    prepare,
)

WEIGHTS = pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
# Below and above the size from which float32 weights are packed, off every block size.
SMALL, LARGE = (7, 6), (371, 362)  # outputs, inputs
# Of the largest entry, for weights and inputs from a normal distribution.
TOLERANCES = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.03}


@pytest.fixture(autouse=True)
def _kernels_chosen_anew() -> Iterator[None]:
    yield
    has_onednn.cache_clear()
    integer_product.cache_clear()


def draw(num_outputs: int, num_inputs: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    weight_OD = torch.randn(num_outputs, num_inputs) / num_inputs**0.5
    return weight_OD, torch.randn(num_outputs), torch.randn(num_rows, num_inputs)


def reference(weight_OD: Tensor, bias_O: Tensor | None, x_MD: Tensor, activation: str) -> Tensor:
    y_MO = x_MD.double() @ weight_OD.double().T
    y_MO = y_MO if bias_O is None else y_MO + bias_O.double()
    if activation in GATED:
        gate, value = y_MO.tensor_split(2, 1)
        return ACTIVATIONS[GATED[activation]](gate) * value
    return ACTIVATIONS[activation](y_MO)


def assert_near(got: Tensor, wanted: Tensor, weights: str) -> None:
    assert got.shape == wanted.shape
    # A gate multiplies two errors' worth of values, each of order 1.
    scale = 3 * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
    atol = TOLERANCES[weights] * scale
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=atol)


@WEIGHTS
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_is_the_map_at_every_size(
    weights: str, size: tuple[int, int], num_rows: int, *, has_bias: bool
) -> None:
    weight_OD, drawn_O, x_MD = draw(*size, num_rows)
    bias_O = drawn_O if has_bias else None
    packed = pack_linear(weight_OD, bias_O, "gelu", weights)
    wanted = reference(weight_OD, bias_O, x_MD, "gelu")
    assert_near(packed(*prepare(x_MD, weights)), wanted, weights)


@WEIGHTS
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("size", [(8, 6), (370, 362)], ids=["small", "large"])
def test_applies_every_activation(weights: str, size: tuple[int, int], activation: str) -> None:
    weight_OD, bias_O, x_MD = draw(*size, 9)
    packed = pack_linear(weight_OD, bias_O, activation, weights)
    wanted = reference(weight_OD, bias_O, x_MD, activation)
    assert_near(packed(*prepare(x_MD, weights)), wanted, weights)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
def test_small_weights_give_the_same_for_few_rows_and_many(activation: str) -> None:
    weight_OD, bias_O, x_MD = draw(60, 62, 400)
    packed = pack_linear(weight_OD, bias_O, activation, "float32")
    assert isinstance(packed, PlainLinear)
    assert weight_OD.numel() < _products.ONEDNN_MULTIPLICATIONS < 400 * weight_OD.numel()
    for rows in (x_MD[:1], x_MD):
        assert_near(
            packed(*prepare(rows, "float32")),
            reference(weight_OD, bias_O, rows, activation),
            "float32",
        )


def test_keeps_no_view_of_the_stack() -> None:
    stack_EOD, stack_EO = torch.randn(3, 7, 6), torch.randn(3, 7)
    x_MD = torch.randn(2, 6)
    packed = [pack_linear(stack_EOD[1], stack_EO[1], "relu", each) for each in TOLERANCES]
    before = [one(*prepare(x_MD, each)) for one, each in zip(packed, TOLERANCES, strict=True)]
    stack_EOD.zero_()
    stack_EO.zero_()
    for one, each, wanted in zip(packed, TOLERANCES, before, strict=True):
        assert torch.equal(one(*prepare(x_MD, each)), wanted)


# --- int8 -----------------------------------------------------------------------------------


@given(
    num_outputs=st.integers(1, 9),
    num_inputs=st.integers(1, 70),
    num_rows=st.integers(0, 5),
    outliers=st.sampled_from([0.0, 10.0, 1000.0]),
)
def test_int8_errs_by_no_more_than_its_bound(
    num_outputs: int, num_inputs: int, num_rows: int, outliers: float
) -> None:
    weight_OD, bias_O, x_MD = draw(num_outputs, num_inputs, num_rows)
    weight_OD[:, 0] += outliers * torch.randn(num_outputs)
    x_MD[:, -1] += outliers * torch.randn(num_rows)
    wanted = reference(weight_OD, bias_O, x_MD, "identity")
    error_MO = (
        pack_linear(weight_OD, bias_O, "identity", "int8")(*prepare(x_MD, "int8")) - wanted
    ).abs()
    code = integer_product().largest_code
    largest_O, largest_M1 = weight_OD.abs().amax(1), x_MD.abs().amax(1, keepdim=True)
    bound_MO = largest_O * x_MD.abs().sum(1, keepdim=True) / (2 * code)
    bound_MO = bound_MO + largest_M1 * weight_OD.abs().sum(1) / 254
    bound_MO = bound_MO + num_inputs * largest_O * largest_M1 / (508 * code)
    # The codes are exact, their scales are float32.
    assert bool((error_MO <= bound_MO + 1e-5 * wanted.abs().clamp(min=1)).all())


def test_int8_is_1_percent_off_for_normal_weights_and_inputs() -> None:
    weight_OD, _, x_MD = draw(*LARGE, 100)
    wanted = reference(weight_OD, None, x_MD, "identity")
    error = pack_linear(weight_OD, None, "identity", "int8")(*prepare(x_MD, "int8")) - wanted
    assert float(error.norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_int8_gives_a_row_the_same_to_the_bit_in_every_batch(activation: str) -> None:
    weight_OD, bias_O, x_MD = draw(*LARGE, 50)
    x_MD[3] *= 1e6
    packed = pack_linear(weight_OD, bias_O, activation, "int8")
    together = packed(*prepare(x_MD, "int8"))
    for rows in (slice(0, 1), slice(5, 7), slice(10, 41)):
        assert torch.equal(packed(*prepare(x_MD[rows], "int8")), together[rows])


@WEIGHTS
def test_a_row_may_have_any_stride(weights: str) -> None:
    weight_OD, bias_O, x_MD = draw(*LARGE, 1)
    packed = pack_linear(weight_OD, bias_O, "relu", weights)
    wanted = packed(*prepare(x_MD, weights))
    for odd in (x_MD.as_strided(x_MD.shape, (0, 1)), x_MD.T.contiguous().T):
        assert torch.equal(packed(*prepare(odd, weights)), wanted)


def test_int8_of_rows_and_weights_of_zeros_is_the_bias() -> None:
    weight_OD, bias_O, x_MD = draw(7, 6, 3)
    weight_OD[2] = 0
    x_MD[1] = 0
    got = pack_linear(weight_OD, bias_O, "identity", "int8")(*prepare(x_MD, "int8"))
    assert torch.equal(got[1], bias_O)
    assert torch.equal(got[:, 2], bias_O[2].expand(3))


# --- kernels --------------------------------------------------------------------------------


def test_large_weights_are_packed_and_small_ones_are_not() -> None:
    if not has_onednn(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    forms = [
        type(pack_linear(torch.randn(size, 256), None, "relu", "float32")) for size in (255, 256)
    ]
    assert forms == [PlainLinear, OneDnnLinear]


def test_onednn_is_there_wherever_pytorch_says_it_is() -> None:
    # Fails when PyTorch renames its private operators, which would only cost speed.
    assert has_onednn(torch.float32) is torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def test_onednn_gives_what_this_version_of_it_gave() -> None:
    if not has_onednn(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    weight_OD = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    x_MD = torch.tensor([[1.0, 1.0]])
    bias_O = torch.tensor([0.5, 0.25])
    wanted = {
        "identity": [3.5, -0.75],
        "relu": [3.5, 0.0],
        "silu": [3.3974072, -0.2406160],
        "gelu": [3.4991858, -0.1699705],
    }
    for activation, values in wanted.items():
        got = OneDnnLinear(weight_OD, bias_O, activation)(x_MD)
        torch.testing.assert_close(got, torch.tensor([values]), rtol=0, atol=1e-6)


@WEIGHTS
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_without_the_private_operators_the_answer_is_the_same(
    monkeypatch: pytest.MonkeyPatch, weights: str, size: tuple[int, int]
) -> None:
    weight_OD, bias_O, x_MD = draw(*size, 9)
    with_operators = pack_linear(weight_OD, bias_O, "gelu", weights)
    monkeypatch.setattr(_packed_linear, "has_onednn", lambda _dtype: False)
    monkeypatch.delattr(torch, "_int_mm")
    integer_product.cache_clear()
    without = pack_linear(weight_OD, bias_O, "gelu", weights)
    assert without.kernel == ("float64" if weights == "int8" else "plain")
    rows = prepare(x_MD, weights)
    tolerance = 0.02 if weights == "bfloat16" else 1e-5
    torch.testing.assert_close(without(*rows), with_operators(*rows), rtol=0, atol=tolerance)


def test_codes_of_7_bits_are_used_where_pairs_of_8_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def saturating(code_MD: Tensor, code_DO: Tensor) -> Tensor:
        # As a processor without VNNI: bytes made unsigned, pairs of products kept in 16 bits.
        products_MDO = (code_MD.int() + 128)[:, :, None] * code_DO.int()
        pairs = products_MDO[:, ::2] + products_MDO[:, 1::2]
        kept = pairs.clamp(-(2**15), 2**15 - 1).sum(1)
        return torch.sub(kept, 128 * code_DO.int().sum(0))

    monkeypatch.setattr(torch, "_int_mm", saturating)
    integer_product.cache_clear()
    weight_OD, bias_O, x_MD = draw(*LARGE, 9)
    packed = pack_linear(weight_OD, bias_O, "identity", "int8")
    assert packed.kernel == "int8_of_7_bits"
    got = packed(*prepare(x_MD, "int8"))
    assert_near(got, reference(weight_OD, bias_O, x_MD, "identity"), "int8")


def test_many_rows_become_the_same_codes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x_MD = torch.randn(50, 6)
    wanted = prepare(x_MD, "int8")
    monkeypatch.setattr(_packed_linear, "ENCODED_AT_ONCE", 16)
    assert all(map(torch.equal, prepare(x_MD, "int8"), wanted))


def test_codes_are_exact_on_an_older_processor() -> None:
    # oneDNN reads the variable once; elsewhere than on x86 it changes nothing.
    code = (
        "import torch\n"
        "from moe_runtime._packed_linear import integer_product, pack_linear\n"
        "multiply, largest, _ = integer_product()\n"
        "x = torch.randint(-127, 128, (33, 770), dtype=torch.int8)\n"
        "w = torch.randint(-largest, largest + 1, (65, 770), dtype=torch.int8)\n"
        "assert torch.equal(multiply(x, w.T).double(), x.double() @ w.double().T)\n"
        "for weights in ('float32', 'bfloat16'):\n"
        "    packed = pack_linear(torch.ones(512, 256), None, 'relu', weights)\n"
        "    assert packed(torch.ones(2, 256, dtype=getattr(torch, weights))).eq(256).all()\n"
        "print('exact')"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment
    )
    assert done.stdout.strip() == "exact"


def test_a_copy_shares_and_a_pickle_is_refused() -> None:
    packed = Int8Linear(torch.ones(2, 3), None, "relu")
    assert copy.deepcopy(packed) is packed
    with pytest.raises(TypeError, match="cannot be pickled: save the model before `pack_experts`"):
        pickle.dumps(packed)
