"""The optional packages of the `onnx` extra, imported at use."""

from types import ModuleType

from moe_runtime import _requirements


def require(name: str) -> ModuleType:
    """Import one of the extra's packages, or say how to install it."""
    return _requirements.require(name, extra="onnx", purpose="exporting to ONNX")
