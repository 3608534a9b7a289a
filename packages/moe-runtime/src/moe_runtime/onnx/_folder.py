"""The folder of an export: what is in it, and whether that is still what was written."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
CANONICAL_FILE, CANONICAL_DATA_FILE = "canonical.onnx", "canonical.onnx.data"
INFO_FILE, EXAMPLES_FILE = "model_info.json", "examples.npz"
# What reading a damaged archive of arrays raises.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ModelError(ValueError):
    """An exported model is missing or damaged; the message names the file and the reason."""


class Examples(NamedTuple):
    """Example rows of a model, and PyTorch's answers for them."""

    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


def check_path(name: str, path: object) -> None:
    """Refuse anything but a path."""
    if not isinstance(path, (str, os.PathLike)):
        msg = f"`{name}` must be a path, got {type(path).__name__}."
        raise TypeError(msg)


def check_count(name: str, value: object) -> None:
    """Refuse anything but an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        msg = f"`{name}` must be an integer >= 1, got {value!r}."
        raise ValueError(msg)


def find_model(path: str | os.PathLike[str]) -> Path:
    """Return the file of a model, given it or the folder of an export."""
    check_path("path", path)
    given = Path(path)
    file = given / MODEL_FILE if given.is_dir() else given
    if not file.is_file():
        reason = f"has no {MODEL_FILE}" if given.is_dir() else "does not exist"
        msg = f"{given} {reason}."
        raise ModelError(msg)
    return file


def read_info(folder: Path) -> dict[str, Any]:
    """Read what an export has written about its model."""
    path = folder / INFO_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}."
        raise ModelError(msg) from error
    except ValueError as error:
        msg = f"{path} is damaged: {error}."
        raise ModelError(msg) from error
    if not isinstance(info, dict) or not isinstance(digests(info), dict):
        msg = f"{path} is not what an export writes."
        raise ModelError(msg)
    return info


def digests(info: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON, which `read_info` checks
    """Return the SHA-256 of each file of an export by its name."""
    return info.get("files", {MODEL_FILE: info.get("sha256")})


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Refuse files that are missing, or that differ in any bit from what was written."""
    for name, digest in expected.items():
        path = folder / name
        if Path(name).name != name or not isinstance(digest, str):
            msg = f"{folder / INFO_FILE} is damaged: it lists the file {name!r}: {digest!r}."
            raise ModelError(msg)
        if not path.is_file():
            msg = f"{path} is missing: {INFO_FILE} lists it."
            raise ModelError(msg)
        found = digest_of(path)
        if found != digest:
            msg = f"{path} is damaged: its SHA-256 is {found}, and {INFO_FILE} says {digest}."
            raise ModelError(msg)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_examples(folder: Path) -> Examples:
    """Read the example rows of an export, and PyTorch's answers."""
    path = folder / EXAMPLES_FILE
    arrays = read_arrays(path)
    inputs, outputs = (_under(prefix, arrays) for prefix in ("input.", "output."))
    rows = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    if len(rows) != 1 or 0 in rows or len(inputs) + len(outputs) < len(arrays):
        msg = (
            f"{path} must hold 'input.<name>' with the same number of rows >= 1 each, and "
            f"'output.<name>', got {describe(arrays)}."
        )
        raise ModelError(msg)
    return Examples(inputs, outputs)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an ``.npz`` file."""
    try:
        # NumPy (2.4) leaves a file of its own open where it is damaged.
        with path.open("rb") as file, np.load(file) as archive:
            return dict(archive)
    except FileNotFoundError as error:
        msg = f"{path} does not exist."
        raise ModelError(msg) from error
    except (*_UNREADABLE, AttributeError, TypeError) as error:  # the last two: it is an ``.npy``
        msg = f"{path} cannot be read as .npz: {error}."
        raise ModelError(msg) from error


def describe(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Say names and shapes of arrays."""
    return ", ".join(f"{name!r} {array.shape}" for name, array in arrays.items()) or "nothing"


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    names: Iterable[str] = (name for name in arrays if name.startswith(prefix))
    return {name.removeprefix(prefix): arrays[name] for name in names}
