"""A model in ONNX Runtime that checks its inputs. Needs no PyTorch."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_runtime.onnx._folder import (
    INFO_FILE,
    MODEL_FILE,
    ModelError,
    check_count,
    check_files,
    digests,
    find_model,
    read_info,
)
from moe_runtime.onnx._provider import open_session, run_bound

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
} | {
    f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class TensorSpec(NamedTuple):
    """What an input or an output of a model is called and looks like."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]  # a name or None: any size, equal where the name is equal


class Session:
    """An exported model, ready to run.

    Safe to use from several threads. A run costs a few microseconds more than ONNX Runtime's own.

    Parameters
    ----------
    path
        A folder that `export` has written, whose model must then be as it was written to the bit;
        or any ``.onnx`` file, which is taken as it is.
    provider
        Where it runs: ``"cpu"``, or ``"cuda"`` (extra ``onnx-gpu``), and nowhere else.
    num_threads
        Threads within an operator; ONNX Runtime's choice by default.

    Attributes
    ----------
    inputs, outputs : tuple of TensorSpec
        Name, dtype and shape of each.
    provider : str
        As given.

    Raises
    ------
    ModelError
        If the model is missing or damaged, or ONNX Runtime refuses it.
    RuntimeError
        If `provider` cannot be used; the message says why.
    ModuleNotFoundError
        If the extra is not installed.

    Examples
    --------
    >>> session = Session("exported")  # doctest: +SKIP
    >>> session.run(x=np.zeros((3, 16), np.float32))["output"].shape  # doctest: +SKIP
    (3, 4)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        provider: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            check_count("num_threads", num_threads)
        file = find_model(path)
        if Path(path).is_dir() and (file.parent / INFO_FILE).exists():
            listed = digests(read_info(file.parent))
            # Its weights too, which large models keep in a file of their own.
            own = {name: listed[name] for name in listed if name.startswith(MODEL_FILE)}
            check_files(file.parent, own)
        self._session = open_session(file, provider, num_threads)
        self.provider = provider
        self.inputs = tuple(_spec(file, value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(file, value) for value in self._session.get_outputs())
        self._input_names = {value.name for value in self.inputs}
        self._output_names = [value.name for value in self.outputs]

    def run(self, /, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return every output by name, for inputs by name.

        Raises
        ------
        TypeError, ValueError
            If an input is missing, unknown, no array, or of another dtype or shape.
        """
        self._check(inputs)
        if self.provider == "cpu":
            outputs = self._session.run(self._output_names, inputs)
        else:
            outputs = run_bound(self._session, inputs, self._output_names, self.provider)
        return dict(zip(self._output_names, outputs, strict=True))

    def _check(self, inputs: dict[str, NDArray[Any]]) -> None:
        if inputs.keys() != self._input_names:
            msg = (
                f"`inputs` must be {', '.join(value.name for value in self.inputs)}, "
                f"got {', '.join(inputs) or 'none'}."
            )
            raise ValueError(msg)
        sizes: dict[str, int] = {}
        for name, dtype, shape in self.inputs:
            array = inputs[name]
            if not isinstance(array, np.ndarray):
                msg = f"`{name}` must be a numpy.ndarray, got {type(array).__name__}."
                raise TypeError(msg)
            if array.dtype != dtype:
                msg = f"`{name}` must have dtype {dtype}, got {array.dtype}."
                raise ValueError(msg)
            if not _fits(array.shape, shape, sizes):
                raise ValueError(_misfit(name, array.shape, shape, sizes))


def _fits(
    shape: tuple[int, ...], wanted: tuple[int | str | None, ...], sizes: dict[str, int]
) -> bool:
    """Compare a shape with what is wanted, and note what the names in it stand for."""
    if len(shape) != len(wanted):
        return False
    for size, axis in zip(shape, wanted, strict=True):
        if isinstance(axis, str):
            axis = sizes.setdefault(axis, size)  # noqa: PLW2901 - what the name stands for
        if axis is not None and axis != size:
            return False
    return True


def _misfit(
    name: str,
    shape: tuple[int, ...],
    wanted: tuple[int | str | None, ...],
    sizes: dict[str, int],
) -> str:
    axes = ", ".join("any" if axis is None else str(axis) for axis in wanted)
    noted = [
        f"{axis}={sizes[axis]}"
        for axis, size in zip(wanted, shape, strict=False)
        # Those that agree are no reason, and may be this input's own.
        if isinstance(axis, str) and sizes.get(axis, size) != size
    ]
    reason = f" with {', '.join(noted)}, as the inputs before it," if noted else ","
    return f"`{name}` must have shape ({axes}{',' * (len(wanted) == 1)}){reason} got {shape}."


def _spec(path: Path, value: Any) -> TensorSpec:  # noqa: ANN401 - untyped
    if value.type not in _DTYPES:
        msg = f"{path} cannot be run with NumPy arrays: {value.name!r} is a {value.type}."
        raise ModelError(msg)
    return TensorSpec(value.name, np.dtype(_DTYPES[value.type]), tuple(value.shape))
