"""The graph of a mixture alone is the oracle, for any gates: routers never give some of them."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from _reference import ACTIVATIONS, GATED, draw_gates, reference_mixture
from torch import Tensor

pytest.importorskip("onnx_ir", reason='needs the extra: pip install "moe-runtime[onnx]"')
pytest.importorskip("onnxruntime", reason='needs the extra: pip install "moe-runtime[onnx]"')

OPSET = 20
# Targets that run everything; the others have tests of their own.
EXACT = ["unrolled", "scan"]


def run(
    stacks: list[Tensor],
    activations: list[str],
    x: Tensor,
    gates: Tensor,
    *,
    target: str = "unrolled",
    max_active: int | None = None,
) -> Any:
    import onnx_ir as ir  # noqa: PLC0415 - the extra

    from moe_runtime.onnx._graph import Contents, Layer, Stack  # noqa: PLC0415
    from moe_runtime.onnx._lower import TARGETS, mixture_model  # noqa: PLC0415
    from moe_runtime.onnx._verify import open_session  # noqa: PLC0415

    arrays = [Stack(f"stack_{i}", stack.numpy()) for i, stack in enumerate(stacks)]
    layers = [Layer(*each) for each in zip(arrays[::2], arrays[1::2], activations, strict=True)]
    num_gates, _, num_experts = gates.shape
    out_features = arrays[-1].array.shape[1] // (2 if activations[-1] in GATED else 1)
    dtype = ir.DataType.from_numpy(arrays[0].array.dtype)
    bounds = [num_experts if max_active is None else max_active] * num_gates
    contents = Contents("mixture", layers, out_features, bounds, dtype)
    refusal = TARGETS[target].refusal(contents)
    if refusal is not None:
        return refusal
    model = ir.to_proto(mixture_model(contents, target, opset=OPSET)).SerializeToString()
    feeds = {"x": x.to(stacks[0].dtype).numpy(), "gates": gates.float().numpy()}
    return open_session(model).run(None, feeds)[0]


def draw_stacks(
    num_experts: int,
    widths: tuple[int, ...],
    *,
    gated: bool = False,
    last_gated: bool | None = None,
) -> list[Tensor]:
    """Draw weights and biases; `gated` layers have two halves, the last one unless said."""
    stacks: list[Tensor] = []
    for inputs, outputs in pairwise(widths):
        is_last = len(stacks) == 2 * len(widths) - 4
        is_gated = gated if last_gated is None or not is_last else last_gated
        features = outputs * (2 if is_gated else 1)
        stacks.append(torch.randn(num_experts, features, inputs) / inputs**0.5)
        stacks.append(torch.randn(num_experts, features))
    return stacks


def oracle(stacks: list[Tensor], activations: list[str], x: Tensor, gates: Tensor) -> Tensor:
    wide = [stack.double() for stack in stacks]
    return reference_mixture(x.double(), gates.float().double(), wide, activations)


def compare(
    answer: Any,
    stacks: list[Tensor],
    activations: list[str],
    x: Tensor,
    gates: Tensor,
    *,
    # float32 sums of up to 17 terms, three layers, 17 experts.
    tolerance: float = 1e-5,
) -> None:
    wanted = oracle(stacks, activations, x, gates)
    found = torch.from_numpy(answer).double()
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def count_nodes(target: str, num_experts: int) -> int:
    import onnx_ir as ir  # noqa: PLC0415 - the extra

    from moe_runtime.onnx._graph import Contents, Layer, Stack  # noqa: PLC0415
    from moe_runtime.onnx._lower import mixture_model  # noqa: PLC0415

    weight = Stack("weight", np.zeros((num_experts, 4, 6), np.float32))
    contents = Contents("", [Layer(weight, None, "relu")], 4, [2], ir.DataType.FLOAT)
    return len(list(mixture_model(contents, target, opset=OPSET).graph.all_nodes()))


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("widths", [(6, 4), (6, 9, 4), (6, 9, 5, 4)], ids=["one", "two", "three"])
@pytest.mark.parametrize("num_gates", [1, 2])
def test_equals_the_oracle_for_every_activation_and_depth(
    target: str, activation: str, widths: tuple[int, ...], num_gates: int
) -> None:
    stacks = draw_stacks(5, widths, gated=activation in GATED)
    activations = [activation] * (len(widths) - 1)
    for num_rows in (0, 1, 7, 33):
        x, gates = torch.randn(num_rows, 6), draw_gates(num_gates, num_rows, 5)
        compare(run(stacks, activations, x, gates, target=target), stacks, activations, x, gates)


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("kind", ["none", "all", "negative", "one_expert", "last_row"])
@pytest.mark.parametrize("num_experts", [1, 2, 17])
def test_equals_the_oracle_for_gates_at_the_edge(target: str, kind: str, num_experts: int) -> None:
    stacks = draw_stacks(num_experts, (6, 4))
    x = torch.randn(9, 6)
    gates = {
        "none": torch.zeros(2, 9, num_experts),
        "all": torch.rand(2, 9, num_experts) + 1,
        "negative": -torch.rand(2, 9, num_experts),
        "one_expert": torch.nn.functional.one_hot(torch.zeros(2, 9).long(), num_experts).float(),
        "last_row": torch.zeros(2, 9, num_experts).index_fill(1, torch.tensor(8), 1),
    }[kind]
    compare(run(stacks, ["relu"], x, gates, target=target), stacks, ["relu"], x, gates)


@pytest.mark.parametrize("target", EXACT)
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_equals_the_oracle_in_float16(target: str, activation: str) -> None:
    stacks = [stack.half() for stack in draw_stacks(5, (6, 9, 4), gated=activation in GATED)]
    x, gates = torch.randn(33, 6).half(), draw_gates(2, 33, 5)
    answer = run(stacks, [activation, "identity"], x, gates, target=target)
    # Three roundings to 11 bits of numbers up to 10.
    compare(answer, stacks, [activation, "identity"], x, gates, tolerance=0.02)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "silu", "identity", "swiglu"])
@pytest.mark.parametrize("bound", [1, 2, 4])
@pytest.mark.parametrize("num_gates", [1, 2])
def test_the_operator_of_onnxruntime_equals_the_oracle(
    activation: str, bound: int, num_gates: int
) -> None:
    stacks = draw_stacks(5, (6, 16, 6), gated=activation in GATED, last_gated=False)
    activations = [activation, "identity"]
    for num_rows in (1, 7, 33):
        x = torch.randn(num_rows, 6)
        # From rows without experts to rows with as many as the bound.
        order = torch.rand(num_gates, num_rows, 5).argsort(-1).argsort(-1)
        count = torch.randint(0, bound + 1, (num_gates, num_rows, 1))
        count[:, 0] = 0
        gates = torch.rand(num_gates, num_rows, 5) * (order < count)
        answer = run(stacks, activations, x, gates, target="onnxruntime", max_active=bound)
        compare(answer, stacks, activations, x, gates)


@pytest.mark.parametrize(
    ("widths", "activations", "max_active", "message"),
    [
        ((6, 6), ["relu"], 2, "its experts have 1 and map 6 to 6 features"),
        ((6, 9, 4), ["relu", "identity"], 2, "its experts have 2 and map 6 to 4 features"),
        ((6, 9, 6), ["gelu", "identity"], 2, "is the approximation by tanh"),
        ((6, 9, 6), ["geglu", "identity"], 2, "its experts have 'geglu' and 'identity'"),
        ((6, 9, 6), ["relu", "relu"], 2, "its experts have 'relu' and 'relu'"),
        (
            (6, 9, 6),
            ["relu", "identity"],
            5,
            "its gate may use all 5: export with `hard`=True and `k` below that, or another target",
        ),
    ],
)
def test_what_the_operator_of_onnxruntime_would_compute_wrongly_is_refused(
    widths: tuple[int, ...], activations: list[str], max_active: int, message: str
) -> None:
    stacks = draw_stacks(5, widths, gated=activations[0] in GATED, last_gated=False)
    x, gates = torch.randn(3, 6), draw_gates(1, 3, 5)
    options: Any = {"target": "onnxruntime", "max_active": max_active}
    assert message in run(stacks, activations, x, gates, **options)


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh", "silu", "identity", "swiglu"])
@pytest.mark.parametrize("bound", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_the_8_bit_operator_is_near_the_oracle(activation: str, bound: int, *, bias: bool) -> None:
    stacks = draw_stacks(5, (64, 48, 64), gated=activation in GATED, last_gated=False)
    if not bias:
        stacks[1::2] = [torch.zeros_like(stack) for stack in stacks[1::2]]
    activations = [activation, "identity"]
    for num_rows in (1, 7, 33):
        x = torch.randn(num_rows, 64)
        order = torch.rand(2, num_rows, 5).argsort(-1).argsort(-1)
        count = torch.randint(0, bound + 1, (2, num_rows, 1))
        gates = torch.rand(2, num_rows, 5) * (order < count)
        found = run(stacks, activations, x, gates, target="qmoe", max_active=bound)
        answer, wanted = torch.from_numpy(found), oracle(stacks, activations, x, gates)
        assert (answer - wanted).norm() <= 0.03 * wanted.norm()
        assert not answer[gates.sum(-1) == 0].any()


def test_the_8_bit_operator_gives_a_row_the_same_answer_in_every_batch() -> None:
    stacks = draw_stacks(5, (64, 48, 64))
    x = torch.randn(40, 64)
    x[7] *= 1000
    gates = torch.nn.functional.one_hot(torch.arange(40) % 5, 5)[None].float()
    options: Any = {"target": "qmoe", "max_active": 1}
    whole = run(stacks, ["silu", "identity"], x, gates, **options)
    for row in range(40):
        part = slice(row, row + 1)
        alone = run(stacks, ["silu", "identity"], x[part], gates[:, part], **options)
        np.testing.assert_allclose(alone, whole[:, part], rtol=1e-5, atol=1e-5)


def test_widths_that_no_block_divides_are_refused() -> None:
    stacks = draw_stacks(5, (24, 40, 24))
    x, gates = torch.randn(3, 24), draw_gates(1, 3, 5)
    reason = run(stacks, ["relu", "identity"], x, gates, target="qmoe", max_active=2)
    assert "blocks of 16 features at least, its experts have layers of 24 and 40" in reason


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("num_gates", [1, 2])
def test_8_bit_integers_are_near_the_oracle(activation: str, num_gates: int) -> None:
    stacks = draw_stacks(5, (64, 48, 32), gated=activation in GATED)
    activations = [activation] * 2
    for num_rows in (0, 1, 7, 33):
        x = torch.randn(num_rows, 64)
        gates = draw_gates(num_gates, num_rows, 5).abs()
        answer = torch.from_numpy(run(stacks, activations, x, gates, target="int8"))
        wanted = oracle(stacks, activations, x, gates)
        # Two codes of 8 bits in each of two layers: 0.4 % each.
        assert (answer - wanted).norm() <= 0.03 * wanted.norm()


@pytest.mark.parametrize("fill", [np.ones, np.zeros, lambda shape: -np.ones(shape), None])
@pytest.mark.parametrize("num_inputs", [0, 1, 7, 64])
def test_no_pair_of_products_of_8_bit_integers_overflows(fill: Any, num_inputs: int) -> None:
    from moe_runtime.onnx._int8 import encode  # noqa: PLC0415 - the extra

    shape = (100, num_inputs)
    weight_OD = np.random.default_rng(0).standard_normal(shape) if fill is None else fill(shape)
    codes_DO, scale_O = encode(weight_OD.astype(np.float32))
    error_DO = codes_DO * scale_O - weight_OD.T
    assert (np.abs(error_DO) <= 0.501 * scale_O).all()
    if fill is None and num_inputs == 64:
        # Where neighbours are free, only signs lose a level: 1.3 times the step of 8 bits.
        assert np.mean(127 * scale_O / np.abs(weight_OD).max(1)) < 1.4
    products_DO = np.pad(codes_DO, ((0, num_inputs % 2), (0, 0))).astype(np.int64) * 255
    for of_sign in (products_DO.clip(min=0), products_DO.clip(max=0)):
        pairs = of_sign.reshape(-1, 2, 100).sum(1)
        assert (np.iinfo(np.int16).min <= pairs).all()
        assert (pairs <= np.iinfo(np.int16).max).all()


def test_the_largest_8_bit_integers_do_not_overflow() -> None:
    # As the one above, in ONNX Runtime, on the processor that there is.
    stacks = [torch.ones(3, 32, 64), torch.zeros(3, 32)]
    gates = torch.ones(1, 4, 3)
    answer = run(stacks, ["identity"], torch.ones(4, 64), gates, target="int8")
    np.testing.assert_allclose(answer, np.full((1, 4, 32), 3 * 64.0), rtol=0.01)


def test_8_bit_integers_give_a_row_the_same_answer_in_every_batch() -> None:
    stacks = draw_stacks(5, (64, 48, 32))
    x, gates = torch.randn(40, 64), draw_gates(1, 40, 5)
    # One row is 1000 times larger than the others, which share no scale with it.
    x[7] *= 1000
    whole = run(stacks, ["silu", "identity"], x, gates, target="int8")
    for row in range(40):
        part = slice(row, row + 1)
        alone = run(stacks, ["silu", "identity"], x[part], gates[:, part], target="int8")
        np.testing.assert_allclose(alone, whole[:, part], rtol=1e-5, atol=1e-5)


def test_a_row_of_zeros_has_the_biases_as_its_answer_in_8_bits() -> None:
    stacks = draw_stacks(3, (64, 32))
    gates = torch.ones(1, 2, 3)
    answer = run(stacks, ["identity"], torch.zeros(2, 64), gates, target="int8")
    wanted = stacks[1].sum(0).expand(1, 2, 32).numpy()
    np.testing.assert_allclose(answer, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", [*EXACT, "int8"])
def test_two_threads_repeat_to_the_bit(target: str) -> None:
    stacks = draw_stacks(16, (32, 32))
    x, gates = torch.randn(500, 32), draw_gates(1, 500, 16)
    first = run(stacks, ["relu"], x, gates, target=target)
    for _ in range(10):
        again = run(stacks, ["relu"], x, gates, target=target)
        np.testing.assert_array_equal(again, first)


def test_the_graph_of_a_scan_does_not_grow_with_the_number_of_experts() -> None:
    sizes = {
        target: [count_nodes(target, num_experts) for num_experts in (2, 64)] for target in EXACT
    }
    assert sizes["scan"][0] == sizes["scan"][1] < 70
    assert sizes["unrolled"][1] > 2 * sizes["unrolled"][0]
