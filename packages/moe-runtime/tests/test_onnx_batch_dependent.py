"""An output that depends on its whole batch is known, verified as a whole, and never batched."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _exported import sign
from _reference import DIM, make_mixture
from torch import Tensor, nn

from moe_runtime import Experts, MultiGateMixtureOfExperts, TopKRouter
from moe_runtime.onnx import (
    ExportError,
    ModelError,
    Verification,
    export,
    lower,
    verify,
    write_triton_repository,
)

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

EVERY_SIZE = (0, 1, 2, 7, 33, 700)
NUM_ROWS = 60


class Rows(nn.Module):
    """Each row has an answer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = make_mixture("top_k")

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.mixture(x).output
        return output


class Centred(Rows):
    """Each row is compared with the others."""

    def forward(self, x: Tensor) -> Tensor:
        output = super().forward(x)
        return output - output.mean(0)


class Flat(Rows):
    """No axis has as many entries as there are rows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(0, 1)


class Both(Rows):
    def forward(self, x: Tensor) -> Any:
        output = super().forward(x)
        return output, output - output.mean(0)


class Tasks(nn.Module):
    """Two gates: rows are the second axis."""

    def __init__(self) -> None:
        super().__init__()
        routers = [TopKRouter(DIM, 4, k=2) for _ in range(2)]
        self.mixture = MultiGateMixtureOfExperts(routers, Experts(4, (DIM, 7, 3)))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.mixture(x).output
        return output


class Lengths(Rows):
    """Tokens, whose number may vary, and an answer a row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


def export_model(model: nn.Module, folder: Path, **options: Any) -> Verification:
    shape = (NUM_ROWS, DIM) if type(model) in {Rows, Centred, Both, Tasks} else (NUM_ROWS, 6, DIM)
    outputs = ["y", "centred"] if isinstance(model, Both) else ["y"]
    names: dict[str, Any] = {"input_names": ["x"], "output_names": outputs, **options}
    return export(model.eval(), (torch.randn(shape),), folder, hard=True, canonical=True, **names)


def dependent(folder: Path) -> list[str]:
    info = json.loads((folder / "model_info.json").read_text())
    found: list[str] = info["batch_dependent"]
    return found


def test_outputs_that_depend_on_the_batch_are_known_and_not_batched(tmp_path: Path) -> None:
    found = {}
    for model in (Rows(), Centred(), Tasks()):
        folder = tmp_path / type(model).__name__
        export_model(model, folder)
        found[type(model).__name__] = dependent(folder)
    assert found == {"Rows": [], "Centred": ["y"], "Tasks": []}
    write_triton_repository(tmp_path / "Rows", tmp_path / "served", name="rows")
    with pytest.raises(ValueError, match="Triton joins requests of several clients; got y"):
        write_triton_repository(tmp_path / "Centred", tmp_path / "served", name="centred")
    served: dict[str, Any] = {"name": "centred", "max_batch_size": 0}
    write_triton_repository(tmp_path / "Centred", tmp_path / "served", **served)


def test_another_axis_of_any_size_makes_no_row_depend_on_the_others(tmp_path: Path) -> None:
    export_model(Lengths(), tmp_path / "model", dynamic_axes={"x": {1: "length"}})
    assert dependent(tmp_path / "model") == []
    write_triton_repository(tmp_path / "model", tmp_path / "served", name="lengths")


@pytest.mark.parametrize("kind", [Centred, Flat])
def test_an_answer_to_the_whole_batch_holds_and_is_lowered(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    export_model(kind(), tmp_path / "model")
    assert dependent(tmp_path / "model") == ["y"]
    result = verify(tmp_path / "model")
    assert result.holds
    # Nothing is known of its parts.
    assert result.batch_sizes == (NUM_ROWS,)
    lowered = lower(tmp_path / "model", tmp_path / "scan", target="scan")
    assert lowered.batch_sizes == (NUM_ROWS,)
    assert verify(tmp_path / "scan").holds


@pytest.mark.parametrize("kind", [Both, Tasks])
def test_an_answer_for_each_row_is_still_compared_in_every_size(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    export_model(kind(), tmp_path / "model")
    result = verify(tmp_path / "model")
    assert result.holds
    assert result.batch_sizes == EVERY_SIZE
    lowered = lower(tmp_path / "model", tmp_path / "scan", target="scan")
    assert lowered.batch_sizes == EVERY_SIZE


def test_a_wrong_answer_to_the_whole_batch_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_model(Centred(), folder)
    arrays = dict(np.load(folder / "examples.npz"))
    arrays["output.y"][-1, 0] += 0.5
    np.savez(folder / "examples.npz", **arrays)
    sign(folder)
    assert not verify(folder).holds
    with pytest.raises(ExportError, match="differs from PyTorch by 0"):
        lower(folder, tmp_path / "scan", target="scan")
    del arrays["output.y"]
    np.savez(folder / "examples.npz", **arrays)
    sign(folder)
    with pytest.raises(ModelError, match=r"'output\.y' is missing"):
        verify(folder)
