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
    inputs, outputs, digest = _read_info(folder / INFO_FILE)
    with (folder / MODEL_FILE).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != found:
        msg = (
            f"{folder / MODEL_FILE} is damaged, or not the model that {INFO_FILE} describes: "
            f"its SHA-256 is {found}, not {digest}. Export it again."
        )
        raise ValueError(msg)
    files = [folder / name for name in (MODEL_FILE, WEIGHTS_FILE) if (folder / name).is_file()]
    return Exported(inputs, outputs, tuple(files))


def check_served_name(name: str) -> None:
    """Refuse names that cannot be a folder's and a part of a URL."""
    check_type("name", name, str, "a string")
    if not _SERVED_NAME.fullmatch(name):
        msg = f"`name` must consist of letters, digits, '.', '_' and '-', got {name!r}."
        raise ValueError(msg)


def _read_info(path: Path) -> tuple[tuple[Value, ...], tuple[Value, ...], object]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return _values(info["inputs"]), _values(info["outputs"]), info["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged: {type(error).__name__}: {error}. Export the model again."
        raise ValueError(msg) from error


def _values(described: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(each["name"], each["dtype"], tuple(each["shape"])) for each in described)
