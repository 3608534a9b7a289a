"""The text of config.pbtxt, the model configuration of NVIDIA's Triton Inference Server."""

from collections.abc import Sequence
from typing import NamedTuple

from moe_runtime.onnx._exported_folder import Exported, Value

# By the name of ONNX's element type.
DATA_TYPES = {
    "BOOL": "TYPE_BOOL",
    "DOUBLE": "TYPE_FP64",
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
}
_VARIABLE_SIZE = -1


class Serving(NamedTuple):
    """How Triton shall run a model."""

    max_batch_size: int
    preferred_batch_sizes: Sequence[int]
    max_queue_delay_microseconds: int
    instance_count: int
    num_threads: int | None
    device: str


def triton_config(name: str, exported: Exported, serving: Serving) -> str:
    """Write the configuration of a model, in protobuf's text format."""
    if serving.max_batch_size > 0:
        _check_batched(exported)
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {serving.max_batch_size}",
    ]
    for field, values in (("input", exported.inputs), ("output", exported.outputs)):
        for value in values:
            lines += _message(field, _tensor(value, batched=serving.max_batch_size > 0))
    kind = f"kind: KIND_{serving.device.upper()}"
    lines += _message("instance_group", [f"count: {serving.instance_count}", kind])
    if serving.max_batch_size > 0:
        lines += _message("dynamic_batching", _batching(serving))
    if serving.num_threads is not None:
        threads = f'value {{ string_value: "{serving.num_threads}" }}'
        lines += _message("parameters", ['key: "intra_op_thread_count"', threads])
    return "\n".join(lines) + "\n"


def _check_batched(exported: Exported) -> None:
    """Refuse to let Triton join requests where it could not take the answers apart."""
    axes = {value.shape[0] if value.shape else None for value in exported.inputs}
    # Sizes that are not known before the model runs have a name, fixed ones a number.
    axis = next(iter(axes)) if len(axes) == 1 else None
    values = [*exported.inputs, *exported.outputs]
    others = [
        f"{value.name} {list(value.shape)}"
        for value in values
        if not isinstance(axis, str) or value.shape[:1] != (axis,)
    ]
    if others:
        msg = (
            "`max_batch_size` must be 0 where an input or output has no rows as its first axis, "
            "since Triton joins requests and splits answers there; "
            f"got a model with {', '.join(others)}. Or export it without them."
        )
        raise ValueError(msg)
    if exported.batch_dependent:
        msg = (
            "`max_batch_size` must be 0 for a model whose answer for a row depends on the others: "
            f"Triton joins requests of several clients; got {', '.join(exported.batch_dependent)}."
        )
        raise ValueError(msg)


def _tensor(value: Value, *, batched: bool) -> list[str]:
    if value.dtype not in DATA_TYPES:
        msg = f"Triton's onnxruntime backend has no type for {value.name}, which is {value.dtype}."
        raise ValueError(msg)
    sizes = [size if isinstance(size, int) else _VARIABLE_SIZE for size in value.shape]
    sizes = sizes[1:] if batched else sizes
    lines = [f"name: {_quoted(value.name)}", f"data_type: {DATA_TYPES[value.dtype]}"]
    if sizes:
        return [*lines, f"dims: [ {', '.join(map(str, sizes))} ]"]
    # `dims` must not be empty. One number a row goes as a column, and back; outside of a
    # batch Triton refuses an empty `reshape`, and its backend gives a scalar these dims.
    reshape = ["reshape { shape: [ ] }"] if batched else []
    return [*lines, "dims: [ 1 ]", *reshape]


def _batching(serving: Serving) -> list[str]:
    lines = [f"max_queue_delay_microseconds: {serving.max_queue_delay_microseconds}"]
    if serving.preferred_batch_sizes:
        sizes = ", ".join(map(str, serving.preferred_batch_sizes))
        lines.append(f"preferred_batch_size: [ {sizes} ]")
    return lines


def _message(field: str, lines: list[str]) -> list[str]:
    return [f"{field} {{", *(f"  {line}" for line in lines), "}"]


def _quoted(text: str) -> str:
    """Quote a string; what is not printable ASCII as the octal of its UTF-8 bytes."""
    plain = set(range(ord(" "), ord("~") + 1)) - set(b'"\\')
    characters = (chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(characters)}"'
