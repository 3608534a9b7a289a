"""What is promised is there, documented by examples that run, and imports nothing large."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version

import pytest

import moe_runtime
import moe_runtime.convert
import moe_runtime.onnx

MODULES = [
    found.name
    for found in pkgutil.walk_packages(moe_runtime.__path__, "moe_runtime.")
    if not any(extra in found.name for extra in ("numba", "onnx", "_triton"))
]
PUBLIC = [name for name in moe_runtime.__all__ if not name.startswith("_")]


def test_all_is_what_the_package_imports() -> None:
    imported = {
        name
        for name, thing in vars(moe_runtime).items()
        if str(getattr(thing, "__module__", "")).startswith("moe_runtime.")
    }
    assert imported == set(PUBLIC)
    assert moe_runtime.__all__ == sorted(set(moe_runtime.__all__))


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    thing = getattr(moe_runtime, name)
    assert thing.__doc__
    # Not the signature that a NamedTuple writes by itself.
    assert not thing.__doc__.startswith(f"{name}(")


def test_all_of_convert_is_documented() -> None:
    names = moe_runtime.convert.__all__
    assert names == sorted(names)
    for name in names:
        assert getattr(moe_runtime.convert, name).__doc__


def test_all_of_onnx_is_there_and_documented() -> None:
    assert moe_runtime.onnx.__all__ == [
        "Change",
        "ExportError",
        "ModelError",
        "Session",
        "StoredVerification",
        "TargetError",
        "TensorSpec",
        "Verification",
        "export",
        "lower",
        "verify",
        "write_mlserver_folder",
        "write_triton_repository",
    ]
    for name in moe_runtime.onnx.__all__:
        assert getattr(moe_runtime.onnx, name).__doc__


def test_the_version_is_that_of_the_distribution() -> None:
    assert moe_runtime.__version__ == version("moe-runtime")


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_importing_brings_none_of_the_extras() -> None:
    code = (
        "import sys, moe_runtime.onnx\n"
        "large = ('numba', 'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'torch._dynamo')\n"
        "print([m for m in large if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
