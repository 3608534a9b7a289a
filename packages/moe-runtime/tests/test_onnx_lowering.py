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


def run(stacks: list[Tensor], activations: list[str], x: Tensor, gates: Tensor) -> Any:
    import onnx_ir as ir  # noqa: PLC0415 - the extra

    from moe_runtime.onnx._lower import Contents, mixture_model  # noqa: PLC0415
    from moe_runtime.onnx._verify import open_session  # noqa: PLC0415

    weights, biases = ([stack.numpy() for stack in stacks[part::2]] for part in (0, 1))
    out_features = biases[-1].shape[1] // (2 if activations[-1] in GATED else 1)
    contents = Contents(weights, biases, activations, gates.shape[0], out_features)
    model = ir.to_proto(mixture_model(contents, opset=OPSET)).SerializeToString()
    feeds = {"x": x.float().numpy(), "gates": gates.float().numpy()}
    return open_session(model).run(None, feeds)[0]


def draw_stacks(num_experts: int, widths: tuple[int, ...], *, gated: bool = False) -> list[Tensor]:
    features = 2 if gated else 1
    return [
        stack
        for inputs, outputs in pairwise(widths)
        for stack in (
            torch.randn(num_experts, features * outputs, inputs) / inputs**0.5,
            torch.randn(num_experts, features * outputs),
        )
    ]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
@pytest.mark.parametrize("widths", [(6, 4), (6, 9, 4), (6, 9, 5, 4)], ids=["one", "two", "three"])
@pytest.mark.parametrize("num_gates", [1, 2])
def test_equals_the_oracle_for_every_activation_and_depth(
    activation: str, widths: tuple[int, ...], num_gates: int
) -> None:
    stacks = draw_stacks(5, widths, gated=activation in GATED)
    activations = [activation] * (len(widths) - 1)
    for num_rows in (0, 1, 7, 33):
        x, gates = torch.randn(num_rows, 6), draw_gates(num_gates, num_rows, 5)
        wide = [stack.double() for stack in stacks]
        wanted = reference_mixture(x.double(), gates.float().double(), wide, activations)
        answer = torch.from_numpy(run(stacks, activations, x, gates))
        # float32 sums of up to 9 terms, three layers, 5 experts.
        torch.testing.assert_close(answer.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "all", "negative", "one_expert", "last_row"])
@pytest.mark.parametrize("num_experts", [1, 2, 17])
def test_equals_the_oracle_for_gates_at_the_edge(kind: str, num_experts: int) -> None:
    stacks = draw_stacks(num_experts, (6, 4))
    x = torch.randn(9, 6)
    gates = {
        "none": torch.zeros(2, 9, num_experts),
        "all": torch.rand(2, 9, num_experts) + 1,
        "negative": -torch.rand(2, 9, num_experts),
        "one_expert": torch.nn.functional.one_hot(torch.zeros(2, 9).long(), num_experts).float(),
        "last_row": torch.zeros(2, 9, num_experts).index_fill(1, torch.tensor(8), 1),
    }[kind]
    wide = [stack.double() for stack in stacks]
    wanted = reference_mixture(x.double(), gates.double(), wide, ["relu"])
    answer = torch.from_numpy(run(stacks, ["relu"], x, gates))
    # float32 sums of up to 17 outputs of size 1.
    torch.testing.assert_close(answer.double(), wanted, rtol=1e-5, atol=1e-5)


def test_two_threads_repeat_to_the_bit() -> None:
    stacks = draw_stacks(16, (32, 32))
    x, gates = torch.randn(500, 32), draw_gates(1, 500, 16)
    first = run(stacks, ["relu"], x, gates)
    for _ in range(10):
        np.testing.assert_array_equal(run(stacks, ["relu"], x, gates), first)
