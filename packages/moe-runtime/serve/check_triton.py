"""Read what is written for Triton with Triton's own schema, and compare it with the models.

    python check_triton.py FOLDER

FOLDER is what export_examples.py has written. Triton itself is not started.
"""

import sys
from pathlib import Path

import onnxruntime as ort
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput

TYPES = {
    "bool": "TYPE_BOOL",
    "float": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}


def problems_of(version: Path) -> list[str]:
    """Compare a model's configuration with its inputs and outputs."""
    config = text_format.Parse((version.parent / "config.pbtxt").read_text(), ModelConfig())
    session = ort.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    problems = []
    for told, values in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        wanted = {value.name: (_type(value.type), _sizes(value.shape)) for value in values}
        batched = config.max_batch_size > 0
        got = {each.name: (each.data_type, _full_shape(each, batched=batched)) for each in told}
        if got != wanted:
            problems.append(f"{version}: {got}, wanted {wanted}")
    print(f"{config.name}: max_batch_size {config.max_batch_size}, {len(problems)} problems")
    return problems


def _type(name: str) -> int:
    number: int = DataType.Value(TYPES[name.removeprefix("tensor(").removesuffix(")")])
    return number


def _sizes(shape: list[int | str]) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in shape]


def _full_shape(tensor: ModelInput | ModelOutput, *, batched: bool) -> list[int]:
    """Put together a shape as Triton does; outside of a batch it has no scalars."""
    shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    if batched:
        return [-1, *shape]
    return [] if list(shape) == [1] else list(shape)


def main() -> int:
    """Check all models of the repository."""
    versions = sorted(Path(sys.argv[1], "triton").glob("*/1"))
    problems = [problem for version in versions for problem in problems_of(version)]
    for problem in problems:
        print("PROBLEM", problem)
    return bool(problems) or not versions


if __name__ == "__main__":
    sys.exit(main())
