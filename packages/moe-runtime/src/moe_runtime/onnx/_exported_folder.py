"""Read what `export` has left in a folder, for those who pass it on to a server."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from moe_runtime._checks import check_type

MODEL_FILE, INFO_FILE = "model.onnx", "model_info.json"
# Large weights stand beside the model, which refers to them by this name.
WEIGHTS_FILE = "model.onnx.data"
# A folder's name and a part of a URL, in every server.
_SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Value(NamedTuple):
    """An input or output: its ONNX element type, and sizes, a name where they vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Exported(NamedTuple):
    """A model's files, and what goes in and comes out."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    files: tuple[Path, ...]

    def copy_to(self, folder: Path) -> None:
        """Copy the model, with its weights where they stand beside it."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


def read_exported(exported_folder: str | os.PathLike[str]) -> Exported:
    """Read a folder that `export` has written, or say what is wrong with it."""
    check_type("exported_folder", exported_folder, (str, os.PathLike), "a path")
    folder = Path(exported_folder)
    for name in (MODEL_FILE, INFO_FILE):
        if not (folder / name).is_file():
            msg = f"`exported_folder` must hold {name}, as `export` writes it; {folder} does not."
            raise FileNotFoundError(msg)
    inputs, outputs, digests = _read_info(folder / INFO_FILE)
    for name, digest in digests.items():
        _check_file(folder / name, digest)
    return Exported(inputs, outputs, tuple(folder / name for name in digests))


def check_served_name(name: str) -> None:
    """Refuse names that cannot be a folder's and a part of a URL."""
    check_type("name", name, str, "a string")
    if not _SERVED_NAME.fullmatch(name):
        msg = f"`name` must consist of letters, digits, '.', '_' and '-', got {name!r}."
        raise ValueError(msg)


def _check_file(path: Path, wanted: str) -> None:
    if not path.is_file():
        msg = f"{path} is missing, which belongs to the model by {INFO_FILE}. Export it again."
        raise FileNotFoundError(msg)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        msg = (
            f"{path} is damaged, or not the file that {INFO_FILE} describes: its SHA-256 is "
            f"{found}, not {wanted}. Export it again."
        )
        raise ValueError(msg)


def _read_info(
    path: Path,
) -> tuple[tuple[Value, ...], tuple[Value, ...], dict[str, str]]:
    """Read what goes in and comes out, and the digests of the files that a server needs."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        files = info.get("files", {})
        digests = {MODEL_FILE: info["sha256"]}
        digests |= {name: files[name] for name in (WEIGHTS_FILE,) if name in files}
        return _values(info["inputs"]), _values(info["outputs"]), digests
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is damaged: {type(error).__name__}: {error}. Export the model again."
        raise ValueError(msg) from error


def _values(described: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(each["name"], each["dtype"], tuple(each["shape"])) for each in described)
