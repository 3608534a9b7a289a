"""Random architectures: whatever the gate, the experts and the sizes, an export agrees or refuses.

`MOE_EXPORTS` says how many are drawn; nox's session `exports` asks for 200.
"""

import os
import tempfile
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from _reference import ACTIVATIONS, DIM, GATED, NUM_IDS, ROUTERS, awake
from hypothesis import given, settings
from torch import Tensor, nn

from moe_runtime import Experts, MultiGateMixtureOfExperts
from moe_runtime.onnx import TargetError, Verification, export

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

NUM_EXPORTS = int(os.environ.get("MOE_EXPORTS", "8"))
# Sums of up to 17 experts of two layers in float32, and their rounding to 11 bits.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-2}


class Architecture(NamedTuple):
    """What is drawn."""

    routers: list[str]
    num_experts: int
    k: int
    hidden: list[int]
    out_features: int
    activation: str
    bias: bool
    dtype: torch.dtype
    hard: bool
    target: str
    seed: int


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    num_experts = draw(st.integers(2, 17))
    return Architecture(
        routers=draw(st.lists(st.sampled_from(sorted(ROUTERS)), min_size=1, max_size=3)),
        num_experts=num_experts,
        k=draw(st.integers(1, min(4, num_experts))),
        hidden=draw(st.lists(st.integers(1, 24), max_size=2)),
        out_features=draw(st.sampled_from([1, 5, DIM])),
        activation=draw(st.sampled_from([*ACTIVATIONS, *GATED])),
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(TOLERANCES))),
        hard=draw(st.booleans()),
        target=draw(st.sampled_from(["unrolled", "scan", "onnxruntime"])),
        seed=draw(st.integers(0, 1000)),
    )


class Model(nn.Module):
    """A mixture of the routers that read ids, and one of those that read rows."""

    def __init__(self, drawn: Architecture) -> None:
        super().__init__()
        widths = (DIM, *drawn.hidden, drawn.out_features)
        self.mixtures = nn.ModuleList()
        for hashed in (True, False):
            routers = [
                awake(ROUTERS[name](drawn.num_experts, drawn.k))
                for name in drawn.routers
                if (name == "hash") is hashed
            ]
            if routers:
                experts = Experts(
                    drawn.num_experts, widths, activation=drawn.activation, bias=drawn.bias
                )
                self.mixtures.append(MultiGateMixtureOfExperts(routers, experts))

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        return [output for mixture in self.mixtures for output in self.outputs(mixture, x, ids)]

    def outputs(self, mixture: nn.Module, x: Tensor, ids: Tensor) -> list[Tensor]:
        assert isinstance(mixture, MultiGateMixtureOfExperts)
        is_hashed = "table" in dict(mixture.routers[0].named_buffers())
        output: Tensor = mixture(x, ids if is_hashed else None).output
        return list(output.unbind())


@pytest.mark.filterwarnings("ignore:with `k`=1 the weight")
@settings(max_examples=NUM_EXPORTS)
@given(drawn=architectures())
def test_every_architecture_exports_loads_and_agrees_or_says_why_not(drawn: Architecture) -> None:
    torch.manual_seed(drawn.seed)
    model = Model(drawn).to(drawn.dtype).eval()
    inputs = (torch.randn(60, DIM).to(drawn.dtype), torch.randint(NUM_IDS, (60,)))
    names: dict[str, Any] = {
        "input_names": ["x", "ids"],
        "output_names": [f"y{task}" for task in range(len(drawn.routers))],
        "tolerance": TOLERANCES[drawn.dtype],
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            verification = export(
                model, inputs, folder, hard=drawn.hard, target=drawn.target, **names
            )
        except TargetError:
            assert drawn.target == "onnxruntime"
            verification = export(model, inputs, folder, hard=drawn.hard, **names)
    assert isinstance(verification, Verification)
    assert len(verification.output_errors) == len(drawn.routers)
    assert verification.largest_error <= TOLERANCES[drawn.dtype]
