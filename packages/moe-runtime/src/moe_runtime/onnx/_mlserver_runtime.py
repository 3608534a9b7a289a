"""Serve an ONNX model with MLServer; `write_mlserver_folder` puts a copy beside the model.

It runs where neither this package nor PyTorch is installed, and imports neither.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.errors import InferenceError
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    RequestInput,
    ResponseOutput,
)
from mlserver.utils import get_model_uri
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

# ONNX Runtime's name of a type, that of the V2 protocol, and NumPy's.
_TYPES: dict[str, tuple[str, type[np.generic]]] = {
    "tensor(bool)": ("BOOL", np.bool_),
    "tensor(double)": ("FP64", np.float64),
    "tensor(float)": ("FP32", np.float32),
    "tensor(float16)": ("FP16", np.float16),
    "tensor(int8)": ("INT8", np.int8),
    "tensor(int16)": ("INT16", np.int16),
    "tensor(int32)": ("INT32", np.int32),
    "tensor(int64)": ("INT64", np.int64),
    "tensor(uint8)": ("UINT8", np.uint8),
    "tensor(uint16)": ("UINT16", np.uint16),
    "tensor(uint32)": ("UINT32", np.uint32),
    "tensor(uint64)": ("UINT64", np.uint64),
}
# By NumPy's kind of a type: the kinds of Python numbers that it takes, and their name.
_INTEGERS = ("iu", "integers")
_TAKES = {"b": ("b", "booleans"), "i": _INTEGERS, "u": _INTEGERS, "f": ("iuf", "numbers")}


class OnnxModel(MLModel):  # type: ignore[misc] # the type checker has no MLServer
    """A model on the CPU, several requests at a time."""

    async def load(self) -> bool:
        """Open the model, and tell MLServer what goes in and comes out."""
        path = await get_model_uri(self.settings)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.settings.parameters.extra["num_threads"]
        providers = ["CPUExecutionProvider"]
        self._session = await asyncio.to_thread(
            ort.InferenceSession, path, options, providers=providers
        )
        self.inputs = [_describe(value) for value in self._session.get_inputs()]
        self.outputs = [_describe(value) for value in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request, beside others."""
        return await asyncio.to_thread(self._answer, payload)

    def _answer(self, payload: InferenceRequest) -> InferenceResponse:
        feeds = read_feeds(payload.inputs, self._session.get_inputs())
        names = _wanted(payload, [value.name for value in self._session.get_outputs()])
        try:
            answers = self._session.run(names, feeds)
        except InvalidArgument as error:
            # Such as an id that is not in the model's table.
            msg = f"the model cannot take these inputs: {error}"
            raise InferenceError(msg) from error
        outputs = [_encode(*each) for each in zip(names, answers, strict=True)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def read_feeds(inputs: Sequence[RequestInput], values: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Turn a request's inputs into arrays that the model takes, or refuse them."""
    names = [value.name for value in values]
    got = [each.name for each in inputs]
    if sorted(got) != sorted(names):
        msg = f"`inputs` must be {', '.join(names)}, each once, got {', '.join(got) or 'none'}."
        raise InferenceError(msg)
    by_name = {each.name: each for each in inputs}
    sizes: dict[str, int] = {}
    return {value.name: _decode(by_name[value.name], value, sizes) for value in values}


def _decode(tensor: RequestInput, value: Any, sizes: dict[str, int]) -> NDArray[Any]:  # noqa: ANN401 - ONNX Runtime has no type for it
    datatype, dtype = _TYPES[value.type]
    # An enumeration over REST, a string over gRPC (MLServer 1.7.1).
    got = getattr(tensor.datatype, "value", tensor.datatype)
    if got != datatype:
        msg = f"`{value.name}` must have the datatype {datatype}, got {got}."
        raise InferenceError(msg)
    shape = list(tensor.shape)
    _check_shape(shape, value, sizes)
    array = _numbers(getattr(tensor.data, "root", tensor.data), value.name, np.dtype(dtype))
    size = math.prod(shape)
    if array.size != size:
        msg = f"`{value.name}` must hold {size} values, as its shape says, got {array.size}."
        raise InferenceError(msg)
    return array.reshape(shape)


def _check_shape(shape: list[int], value: Any, sizes: dict[str, int]) -> None:  # noqa: ANN401 - as above
    """Compare with the model's shape; an axis with a name has one size in all inputs."""
    wanted = [sizes.get(size, size) for size in value.shape]
    fits = len(shape) == len(wanted) and all(
        have == want if isinstance(want, int) else have >= 0
        for have, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        axes = [f"{size}={sizes[size]}" if size in sizes else str(size) for size in value.shape]
        msg = f"`{value.name}` must have the shape [{', '.join(axes)}], got {shape}."
        raise InferenceError(msg)
    sizes.update(
        (size, have) for size, have in zip(value.shape, shape, strict=True) if isinstance(size, str)
    )


def _numbers(data: Any, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:  # noqa: ANN401 - JSON
    """Read JSON numbers, flat or nested, none of which the model's type would change."""
    kinds, what = _TAKES[dtype.kind]
    try:
        array = np.asarray(data)
    except ValueError as error:
        msg = f"`{name}` must be a list of {what}, flat or nested as its shape says: {error}"
        raise InferenceError(msg) from error
    if dtype == np.uint64 and array.dtype.kind == "f":
        # NumPy (2.4) takes integers on both sides of 2**63 for floats, which are not exact.
        exact = np.asarray(data, dtype=object)
        if all(type(each) is int and 0 <= each < 2**64 for each in exact.flat):
            array = exact.astype(dtype)
    # An empty list has no type of its own.
    if array.size and array.dtype.kind not in kinds:
        msg = f"`{name}` must hold {what} ({dtype}) only."
        raise InferenceError(msg)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    changed = np.isinf(cast) & ~np.isinf(array) if dtype.kind == "f" else cast != array
    if changed.any():
        msg = f"`{name}` must hold {what} in the range of {dtype}, got {array[changed][0]}."
        raise InferenceError(msg)
    return cast


def _wanted(payload: InferenceRequest, names: list[str]) -> list[str]:
    """List the outputs that a request asks for: all where it does not say."""
    asked = [each.name for each in payload.outputs or []]
    if not set(asked) <= set(names):
        msg = f"`outputs` must be among {', '.join(names)}, got {', '.join(asked)}."
        raise InferenceError(msg)
    return asked or names


def _encode(name: str, array: NDArray[Any]) -> ResponseOutput:
    """Encode an answer by hand: MLServer's codec (1.7.1) makes a column of a row of numbers."""
    datatype = next(datatype for datatype, dtype in _TYPES.values() if dtype == array.dtype)
    shape, data = list(array.shape), array.ravel().tolist()
    return ResponseOutput(name=name, datatype=datatype, shape=shape, data=data)


def _describe(value: Any) -> MetadataTensor:  # noqa: ANN401 - as above
    datatype, _ = _TYPES[value.type]
    shape = [size if isinstance(size, int) else -1 for size in value.shape]
    return MetadataTensor(name=value.name, datatype=datatype, shape=shape)
