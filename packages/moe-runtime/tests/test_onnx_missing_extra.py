"""Without the extra everything imports, and what needs it says what to install."""

import re
import sys
from pathlib import Path

import pytest
import torch
from _command import refusal
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


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "onnx"), ("cuda", "onnx-gpu")])
def test_a_session_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, extra: str
) -> None:
    from moe_runtime.onnx import Session  # noqa: PLC0415 - imported without the extra

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    message = f"'onnxruntime', which is not installed: pip install \"moe-runtime[{extra}]\""
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)):
        Session(tmp_path, provider=provider)


def test_inspecting_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    message = "inspect needs the package 'onnx', which is not installed: "
    assert refusal(capsys, "inspect", tmp_path) == f'{message}pip install "moe-runtime[onnx]"'
