"""The command ``moe-runtime``: export, lower, verify, inspect and time ONNX models."""

from moe_runtime._cli._main import main

__all__ = ["main"]
