"""Export trained mixtures to ONNX models that only compute the selected experts.

Needs the extra: ``pip install "moe-runtime[onnx]"``.
"""

from moe_runtime.onnx._export import ExportError, export
from moe_runtime.onnx._mlserver_folder import write_mlserver_folder
from moe_runtime.onnx._triton_repository import write_triton_repository
from moe_runtime.onnx._verification import Verification

__all__ = [
    "ExportError",
    "Verification",
    "export",
    "write_mlserver_folder",
    "write_triton_repository",
]
