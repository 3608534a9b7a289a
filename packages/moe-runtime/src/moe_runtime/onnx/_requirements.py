"""The optional packages of the `onnx` extra, imported at use."""

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """Import one of the extra's packages, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        msg = (
            f"exporting to ONNX needs the package {error.name!r}, which is not installed: "
            'pip install "moe-runtime[onnx]"'
        )
        raise ModuleNotFoundError(msg, name=error.name) from None
