"""Read what `export` has left in a folder, for those who pass it on to a server."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from moe_runtime._checks import check_type
from moe_runtime.onnx._folder import (
    DATA_FILE,
    INFO_FILE,
    MODEL_FILE,
    ModelError,
    check_files,
    check_path,
    digests,
    read_info,
)

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
    batch_dependent: tuple[str, ...]  # outputs whose rows depend on the others of the batch
    files: tuple[Path, ...]

    def copy_to(self, folder: Path) -> None:
        """Copy the model, with its weights where they stand beside it."""
        for file in self.files:
            shutil.copyfile(file, folder / file.name)


def read_exported(exported_folder: str | os.PathLike[str]) -> Exported:
    """Read a folder that `export` has written, or say what is wrong with it."""
    check_path("exported_folder", exported_folder)
    folder = Path(exported_folder)
    info = read_info(folder)
    listed = digests(info)
    served = {name: listed[name] for name in (MODEL_FILE, DATA_FILE) if name in listed}
    check_files(folder, served)
    files = tuple(folder / name for name in served)
    try:
        values = _values(info["inputs"]), _values(info["outputs"])
        return Exported(*values, tuple(info.get("batch_dependent", ())), files)
    except (KeyError, TypeError) as error:
        msg = f"{folder / INFO_FILE} is damaged: {type(error).__name__}: {error}."
        raise ModelError(msg) from error


def check_served_name(name: str) -> None:
    """Refuse names that cannot be a folder's and a part of a URL."""
    check_type("name", name, str, "a string")
    if not _SERVED_NAME.fullmatch(name):
        msg = f"`name` must consist of letters, digits, '.', '_' and '-', got {name!r}."
        raise ValueError(msg)


def _values(described: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(each["name"], each["dtype"], tuple(each["shape"])) for each in described)
