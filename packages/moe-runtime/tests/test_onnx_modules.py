"""Experts that are modules of the user's own keep their rows apart, wherever a model uses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from _reference import DIM
from torch import Tensor, nn

from moe_runtime import MixtureOfExperts, ModuleExperts, TopKRouter, hard_routing
from moe_runtime.onnx import Session, export
from moe_runtime.onnx._decided import decided_rows

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

NUM_EXPERTS = 4


def make_mixture() -> MixtureOfExperts:
    experts = [
        nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, DIM)) for _ in range(NUM_EXPERTS)
    ]
    return MixtureOfExperts(
        TopKRouter(DIM, NUM_EXPERTS, k=2),
        ModuleExperts(experts, in_features=DIM, out_features=DIM),
    )


class TwoUses(nn.Module):
    """One mixture after the other, which may be the same one."""

    def __init__(self, first: MixtureOfExperts, second: MixtureOfExperts) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(x + self.first(x).output).output
        return output


@pytest.mark.parametrize("is_same", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_uses_in_one_model_each_have_rows_of_their_own(
    tmp_path: Path, dtype: torch.dtype, *, is_same: bool
) -> None:
    first = make_mixture()
    model = TwoUses(first, first if is_same else make_mixture()).to(dtype).eval()
    # Rows of rows: a mixture has more of them than the model.
    x = torch.randn(100, 3, DIM, dtype=dtype)
    export(model, (x,), tmp_path, hard=True, input_names=["x"], output_names=["y"])
    session = Session(tmp_path, num_threads=1)
    for num_rows in range(1, 30):
        # Of all sizes, so that an expert's rows differ in number from use to use.
        x = (5 * torch.randn(num_rows, 3, DIM)).to(dtype)
        with torch.no_grad(), hard_routing(model):
            x = x[decided_rows(model, (x,))]
            wanted = model(x)
        answer = torch.from_numpy(session.run(x=np.asarray(x))["y"])
        # Float16 rounds to 11 bits in each of four layers.
        tolerance = 1e-4 if dtype is torch.float32 else 5e-2
        torch.testing.assert_close(answer, wanted, rtol=tolerance, atol=tolerance)
