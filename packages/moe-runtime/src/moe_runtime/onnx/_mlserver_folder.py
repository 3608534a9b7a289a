"""Pass an exported model on to MLServer, which speaks the V2 inference protocol."""

import json
import os
import shutil
from pathlib import Path

from moe_runtime._checks import check_positive, check_type
from moe_runtime.onnx._exported_folder import Exported, check_served_name, read_exported
from moe_runtime.onnx._folder import MODEL_FILE
from moe_runtime.onnx._triton_config import DATA_TYPES
from moe_runtime.onnx._whole_folder import check_replaceable, whole_folder

_SETTINGS_FILE = "model-settings.json"
_RUNTIME = "moe_onnx_runtime"
# A session of ONNX Runtime serves many requests at a time, so that worker processes would only
# add the pickling of each. One is the default of MLServer 1.7.1, and does not even start with
# uvloop 0.23. Another default is to log every request.
_SERVER = {"debug": False, "parallel_workers": 0}


def write_mlserver_folder(
    exported_folder: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    name: str,
    num_threads: int = 1,
    overwrite: bool = False,
) -> Path:
    """Write a folder that ``mlserver start`` serves over REST and gRPC.

    It holds the model, ``model-settings.json``, a runtime that needs nothing but MLServer,
    NumPy and ONNX Runtime (``pip install mlserver==1.7.1 onnxruntime``, Python below 3.13),
    and ``settings.json`` for a server of this model alone, without worker processes; one of
    several models wants ``MLSERVER_PARALLEL_WORKERS=0`` instead. Addresses and ports are
    left to the environment: ``MLSERVER_HOST``, by default all of the machine's,
    ``MLSERVER_HTTP_PORT`` and ``MLSERVER_GRPC_PORT``. A request that the model cannot take
    is answered with status 400 and the reason. JSON has no infinity: over REST, MLServer
    sends null for it, as for NaN; gRPC keeps both.

    Parameters
    ----------
    exported_folder
        What `export` has written.
    folder
        Where to write; its parents are created.
    name
        The name that clients ask for.
    num_threads
        Threads that a request runs on. Several requests run at the same time.
    overwrite
        Replace a folder that an earlier call has written.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder exists, and `overwrite` does not say that it may be replaced, or it
        holds no model settings.
    ModelError
        If a file of the export is missing or damaged.
    TypeError, ValueError
        If an argument is not what it must be, before anything is written.
    """
    check_served_name(name)
    check_positive("num_threads", num_threads)
    check_type("folder", folder, (str, os.PathLike), "a path")
    check_type("overwrite", overwrite, bool, "a bool")
    exported = read_exported(exported_folder)
    _check_types(exported)
    folder = Path(folder)
    check_replaceable(folder, overwrite=overwrite, holds=_SETTINGS_FILE)
    settings = {
        "name": name,
        "implementation": f"{_RUNTIME}.OnnxModel",
        "platform": "onnx",
        "parameters": {"uri": f"./{MODEL_FILE}", "extra": {"num_threads": num_threads}},
    }
    with whole_folder(folder) as beside:
        exported.copy_to(beside)
        shutil.copyfile(Path(__file__).with_name("_mlserver_runtime.py"), beside / f"{_RUNTIME}.py")
        for file, contents in ((_SETTINGS_FILE, settings), ("settings.json", _SERVER)):
            text = json.dumps(contents, indent=2) + "\n"
            (beside / file).write_text(text, encoding="utf-8")
    return folder


def _check_types(exported: Exported) -> None:
    """Refuse a model that the runtime could not load: both servers have the same types."""
    for value in (*exported.inputs, *exported.outputs):
        if value.dtype not in DATA_TYPES:
            msg = f"The V2 protocol has no type for {value.name}, which is {value.dtype}."
            raise ValueError(msg)
