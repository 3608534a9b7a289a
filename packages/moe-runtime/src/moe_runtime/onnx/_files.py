"""The files of an exported model, written beside and renamed."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from moe_runtime.onnx._folder import (
    CANONICAL_DATA_FILE,
    CANONICAL_FILE,
    DATA_FILE,
    EXAMPLES_FILE,
    INFO_FILE,
    MODEL_FILE,
    digest_of,
)
from moe_runtime.onnx._graph import constant_bytes
from moe_runtime.onnx._verify import Arrays
from moe_runtime.onnx._whole_folder import missing_folders, remove_empty

# In the order in which they appear: what says that a model is whole comes last.
FILES = (
    CANONICAL_DATA_FILE, CANONICAL_FILE, EXAMPLES_FILE, DATA_FILE, MODEL_FILE, INFO_FILE,
)  # fmt: skip
# Constants of at least so many bytes together are kept in a file beside the graph: protobuf holds
# 2 GiB at most, and a copy in memory for each step of writing and reading.
EXTERNAL_BYTES = 2**28


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a folder to write files to; they appear in `folder` when the block has succeeded.

    Files of an earlier export that the new one does not have are removed. A process that is
    killed in between leaves no ``model.onnx``, unless both models are one file each: then it
    leaves the one or the other.
    """
    missing = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".export.", suffix=".tmp", dir=folder))
    try:
        yield stage
        written = {path.name for path in stage.iterdir()}
        if DATA_FILE in written or (folder / DATA_FILE).exists():
            (folder / MODEL_FILE).unlink(missing_ok=True)
        for name in FILES:
            if name in written:
                (stage / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(stage)
        remove_empty(missing)


def save_model(model: ir.Model, path: Path) -> bool:
    """Write a model, a large one with its constants beside it; return whether it is large."""
    is_large = constant_bytes(model) >= EXTERNAL_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if is_large else None)
    return is_large


def save_examples(path: Path, inputs: Arrays, answers: Arrays) -> None:
    """Write rows and PyTorch's answers for them."""
    arrays = {f"input.{name}": array for name, array in inputs.items()}
    arrays |= {f"output.{name}": array for name, array in answers.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def save_info(folder: Path, info: Mapping[str, Any]) -> None:
    """Write what is known of a model, and a digest of each of its files."""
    digests = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    whole = {**info, "sha256": digests[MODEL_FILE], "files": digests}
    text = json.dumps(whole, indent=2) + "\n"
    (folder / INFO_FILE).write_text(text, encoding="utf-8")
