"""Without the extra everything imports, and `export` says what to install."""

import re
import sys
from pathlib import Path

import pytest
import torch
from _reference import DIM, make_mixture

PACKAGES = ["onnx", "onnx_ir", "onnxscript", "onnxruntime"]


@pytest.mark.parametrize("missing", PACKAGES)
def test_export_names_the_extra_when_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    for name in list(sys.modules):
        if name.startswith("moe_runtime.onnx"):
            monkeypatch.delitem(sys.modules, name)
    # Those before it are there; whether they are installed is not the question here.
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, torch)
    monkeypatch.setitem(sys.modules, missing, None)
    from moe_runtime.onnx import export  # noqa: PLC0415 - imported without the extra

    message = (
        f"needs the package '{missing}', which is not installed: pip install \"moe-runtime[onnx]\""
    )
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)) as caught:
        export(
            make_mixture("comet"),
            (torch.zeros(2, DIM),),
            tmp_path / "model",
            hard=True,
            input_names=["x"],
            output_names=["y", "penalty", "weights"],
        )
    assert caught.value.name == missing
    assert not (tmp_path / "model").exists()
