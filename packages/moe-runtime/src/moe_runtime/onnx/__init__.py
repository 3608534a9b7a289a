"""Export trained mixtures to ONNX models that only compute the selected experts.

Needs the extra: ``pip install "moe-runtime[onnx]"``.
"""

from moe_runtime.onnx._export import ExportError, export
from moe_runtime.onnx._folder import ModelError
from moe_runtime.onnx._session import Session, TensorSpec
from moe_runtime.onnx._stored import StoredVerification, verify
from moe_runtime.onnx._verification import Verification

__all__ = [
    "ExportError",
    "ModelError",
    "Session",
    "StoredVerification",
    "TensorSpec",
    "Verification",
    "export",
    "verify",
]
