"""ONNX Runtime on the device that was asked for, or the reason why not."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_runtime._requirements import require
from moe_runtime.onnx._folder import ModelError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(path: Path, provider: str, num_threads: int | None) -> Any:  # noqa: ANN401 - untyped
    """Open a model on one execution provider."""
    if provider not in PROVIDERS:
        msg = f"`provider` must be one of {list(PROVIDERS)}, got {provider!r}."
        raise ValueError(msg)
    extra = "onnx" if provider == "cpu" else "onnx-gpu"
    ort = require("onnxruntime", extra=extra, purpose="Session")
    if provider == "cuda":
        _prepare_cuda(ort)
    options = ort.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    wanted = PROVIDERS[provider]
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except runtime_errors() as error:
        msg = f"{path} cannot be opened by ONNX Runtime {ort.__version__}: {error}"
        raise ModelError(msg) from error
    # It falls back to the CPU silently, apart from its log.
    if session.get_providers()[0] != wanted:
        msg = (
            f"`provider`={provider!r} cannot be used: ONNX Runtime {ort.__version__} has only "
            f"logged why, and offers {session.get_providers()} instead. It needs an NVIDIA GPU, "
            "and the libraries of CUDA, cuBLAS and cuDNN of the versions it was built with."
        )
        raise RuntimeError(msg)
    return session


def runtime_errors() -> tuple[type[Exception], ...]:
    """List what ONNX Runtime raises; its classes have no base of their own."""
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="onnx", purpose="Session")
    return tuple(
        each
        for each in vars(state).values()
        if isinstance(each, type) and issubclass(each, Exception)
    )


def run_bound(
    session: Any,  # noqa: ANN401 - untyped
    inputs: Mapping[str, NDArray[Any]],
    output_names: Sequence[str],
    device: str,
) -> list[NDArray[Any]]:
    """Run with inputs and outputs on a device, and read the outputs back."""
    ort = require("onnxruntime", extra="onnx-gpu", purpose="Session")
    binding = session.io_binding()
    for name, array in inputs.items():
        value = ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device, 0)
        binding.bind_ortvalue_input(name, value)
    for name in output_names:
        binding.bind_output(name, device, 0)
    session.run_with_iobinding(binding)
    outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
    return outputs


def _prepare_cuda(ort: Any) -> None:  # noqa: ANN401 - a module
    available = ort.get_available_providers()
    if PROVIDERS["cuda"] not in available:
        both = _installed("onnxruntime") and _installed("onnxruntime-gpu")
        found = "onnxruntime and onnxruntime-gpu are both installed, and " if both else ""
        msg = (
            f"`provider`='cuda' needs onnxruntime-gpu: {found}ONNX Runtime {ort.__version__} has "
            f"only {available}. The two own the same folder and must not both be installed: "
            'pip uninstall onnxruntime onnxruntime-gpu, then pip install "moe-runtime[onnx-gpu]"'
        )
        raise RuntimeError(msg)
    # CUDA's libraries as wheels bring them, PyTorch's for instance, which no linker looks for;
    # it prints what it does not find.
    with redirect_stdout(sys.stderr):
        ort.preload_dlls()


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
