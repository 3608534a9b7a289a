"""A folder as `export` writes it, of a model that is none: for those who only pass it on."""

import hashlib
import json
from pathlib import Path
from typing import Any

MODEL = b"the model"


def values(**described: tuple[str, list[int | str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in described.items()
    ]


INPUTS = values(x=("FLOAT", ["batch", 6]), ids=("INT64", ["batch"]))
OUTPUTS = values(y=("FLOAT", ["batch", 3, 4]), used=("BOOL", ["batch", 5]))
PENALTY = values(penalty=("FLOAT", []))


def write_exported(
    folder: Path,
    *,
    inputs: list[dict[str, Any]] = INPUTS,
    outputs: list[dict[str, Any]] = OUTPUTS,
    weights: bytes | None = None,
    model: bytes = MODEL,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"model.onnx": model}
    if weights is not None:
        contents["model.onnx.data"] = weights
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    info = {"inputs": inputs, "outputs": outputs, "sha256": digests["model.onnx"], "files": digests}
    (folder / "model_info.json").write_text(json.dumps(info))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
