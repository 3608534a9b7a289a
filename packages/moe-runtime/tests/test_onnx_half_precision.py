"""Models in half precision are exported whatever the order of their axes."""

from pathlib import Path

import pytest
import torch
from _reference import DIM, make_mixture
from torch import Tensor, nn

from moe_runtime.onnx import export

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')


class SequenceFirst(nn.Module):
    """Rows of tokens, which the layers want as tokens of rows."""

    def __init__(self, *, is_projected: bool) -> None:
        super().__init__()
        self.mixture = make_mixture("top_k", out_features=DIM)
        self.projection = nn.Linear(DIM, DIM) if is_projected else nn.Identity()

    def forward(self, x_TSD: Tensor) -> Tensor:
        x_STD = self.projection(x_TSD.transpose(0, 1))
        y_STD: Tensor = self.mixture(x_STD).output
        y_TSD: Tensor = self.projection(y_STD.transpose(0, 1))
        return y_TSD


@pytest.mark.parametrize("is_projected", [False, True])
def test_sequences_may_come_first_in_float16(tmp_path: Path, *, is_projected: bool) -> None:
    import onnx_ir as ir  # noqa: PLC0415 - the extra

    from moe_runtime.onnx._trace import trace  # noqa: PLC0415

    model = SequenceFirst(is_projected=is_projected).half().eval()
    x = torch.randn(200, 3, DIM).half()
    with torch.no_grad():
        traced = trace(model, [x], ["x"], ["y"], [{0: torch.export.Dim("batch")}])
    after = [
        use
        for node in traced.graph.all_nodes()
        if node.op_type == "Transpose"
        for use in node.outputs[0].consumers()
    ]
    # At these ONNX Runtime (1.32) ends the process, which would be that of the tests too.
    assert not [use for use in after if use.op_type == "Cast"]
    products = [use for use in after if use.op_type == "MatMul"]
    assert {use.outputs[0].dtype for use in products} <= {ir.DataType.FLOAT}
    export(model, (x,), tmp_path, hard=True, input_names=["x"], output_names=["y"])
