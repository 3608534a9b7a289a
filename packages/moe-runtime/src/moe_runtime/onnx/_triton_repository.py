"""Pass an exported model on to NVIDIA's Triton Inference Server."""

import os
from collections.abc import Sequence
from pathlib import Path

from moe_runtime._checks import check_positive, check_type
from moe_runtime.onnx._exported_folder import check_served_name, read_exported
from moe_runtime.onnx._folder import MODEL_FILE
from moe_runtime.onnx._triton_config import Serving, triton_config
from moe_runtime.onnx._whole_folder import check_replaceable, whole_folder, write_whole_file

_CONFIG_FILE = "config.pbtxt"
_DEVICES = ("cpu", "gpu")


def write_triton_repository(
    exported_folder: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str,
    version: int = 1,
    max_batch_size: int = 1024,
    preferred_batch_sizes: Sequence[int] = (),
    max_queue_delay_microseconds: int = 0,
    instance_count: int = 1,
    num_threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Write a model that `export` has written into a model repository of Triton.

    That is ``<repository>/<name>/<version>/model.onnx`` with its weights beside it, and
    ``<repository>/<name>/config.pbtxt`` for the `onnxruntime` backend. Each appears when it
    is whole.

    Parameters
    ----------
    exported_folder
        What `export` has written.
    repository
        The model repository; it is created, and other models in it are left alone.
    name
        The name that clients ask for.
    version
        The version's number. Triton serves the highest unless told otherwise.
    max_batch_size
        Rows of a batch at most, a single request's included: Triton refuses larger ones.
        It joins requests that wait for a free instance. 0 turns that off: requests of any
        size run one by one. It must be 0 where an output has no rows as its first axis, such
        as a penalty: there is no part of it that belongs to one of the joined requests.
        Then a scalar output arrives with the shape ``[1]``.
    preferred_batch_sizes
        Sizes to which batches are filled up where requests wait. Triton's advice is none.
    max_queue_delay_microseconds
        How long a request may wait for others. With 0, it only waits for a free instance.
    instance_count
        Copies of the model that run at the same time, on each GPU where `device` is "gpu".
    num_threads
        Threads of an instance on the CPU; by default one a core.
    device
        "cpu" or "gpu".
    overwrite
        Replace this version where it exists, and the configuration of the model where it
        differs, which holds for all its versions.

    Returns
    -------
    Path
        The folder of the version.

    Raises
    ------
    FileExistsError
        If the version exists, or the model with another configuration, and `overwrite`
        does not say that they may be replaced.
    ModelError
        If a file of the export is missing or damaged.
    TypeError, ValueError
        If an argument is not what it must be, before anything is written.
    """
    check_served_name(name)
    check_positive("version", version)
    check_type("repository", repository, (str, os.PathLike), "a path")
    check_type("overwrite", overwrite, bool, "a bool")
    serving = Serving(
        max_batch_size,
        preferred_batch_sizes,
        max_queue_delay_microseconds,
        instance_count,
        num_threads,
        device,
    )
    _check_serving(serving)
    exported = read_exported(exported_folder)
    text = triton_config(name, exported, serving)
    folder = Path(repository) / name / str(version)
    check_replaceable(folder, overwrite=overwrite, holds=MODEL_FILE)
    _check_config(folder.with_name(_CONFIG_FILE), text, overwrite=overwrite)
    # Triton passes over folders whose names are no numbers, as that of an unfinished version.
    with whole_folder(folder) as beside:
        exported.copy_to(beside)
        write_whole_file(folder.with_name(_CONFIG_FILE), text)
    return folder


def _check_serving(serving: Serving) -> None:
    for argument, minimum in (
        ("max_batch_size", 0),
        ("max_queue_delay_microseconds", 0),
        ("instance_count", 1),
    ):
        check_positive(argument, getattr(serving, argument), minimum=minimum)
    if serving.num_threads is not None:
        check_positive("num_threads", serving.num_threads)
    if serving.device not in _DEVICES:
        msg = f"`device` must be one of {', '.join(_DEVICES)}, got {serving.device!r}."
        raise ValueError(msg)
    check_type("preferred_batch_sizes", serving.preferred_batch_sizes, Sequence, "a sequence")
    for size in serving.preferred_batch_sizes:
        check_positive("preferred_batch_sizes", size)
    if max(serving.preferred_batch_sizes, default=0) > serving.max_batch_size:
        msg = (
            "`preferred_batch_sizes` must be in "
            f"[1, max_batch_size={serving.max_batch_size}], got {serving.preferred_batch_sizes}."
        )
        raise ValueError(msg)
    if serving.max_batch_size == 0 and serving.max_queue_delay_microseconds > 0:
        msg = (
            "`max_queue_delay_microseconds` must be 0 with `max_batch_size`=0, where no request "
            f"waits for another, got {serving.max_queue_delay_microseconds}."
        )
        raise ValueError(msg)


def _check_config(path: Path, text: str, *, overwrite: bool) -> None:
    if path.exists() and not overwrite and path.read_text(encoding="utf-8") != text:
        msg = (
            f"{path} differs from what this version needs, and holds for all versions; "
            "pass `overwrite=True` to replace it."
        )
        raise FileExistsError(msg)
