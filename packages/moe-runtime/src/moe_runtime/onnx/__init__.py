"""Export trained mixtures to ONNX models that only compute the selected experts.

Needs the extra: ``pip install "moe-runtime[onnx]"``.
"""

from moe_runtime.onnx._errors import ExportError, TargetError
from moe_runtime.onnx._export import export, lower
from moe_runtime.onnx._folder import ModelError
from moe_runtime.onnx._mlserver_folder import write_mlserver_folder
from moe_runtime.onnx._session import Session, TensorSpec
from moe_runtime.onnx._stored import StoredVerification, verify
from moe_runtime.onnx._triton_repository import write_triton_repository
from moe_runtime.onnx._verification import Change, Verification

__all__ = [
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
