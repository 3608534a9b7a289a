"""A repository for Triton is whole, says what the model is, and replaces nothing unasked."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from _passed_on import INPUTS, MODEL, OUTPUTS, PENALTY, files, values, write_exported

from moe_runtime.onnx import ModelError, write_triton_repository
from moe_runtime.onnx._triton_config import DATA_TYPES

# What Triton's model_config.proto says of the fields that are written, by their messages.
SCHEMA: dict[str, dict[str, str]] = {
    "ModelConfig": {
        "name": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "input": "ModelTensor*",
        "output": "ModelTensor*",
        "instance_group": "ModelInstanceGroup*",
        "dynamic_batching": "ModelDynamicBatching",
        "parameters": "Parameter*",
    },
    "ModelTensor": {
        "name": "string",
        "data_type": "DataType",
        "dims": "int64*",
        "reshape": "ModelTensorReshape",
    },
    "ModelTensorReshape": {"shape": "int64*"},
    "ModelInstanceGroup": {"count": "int32", "kind": "Kind"},
    "ModelDynamicBatching": {
        "preferred_batch_size": "int32*",
        "max_queue_delay_microseconds": "uint64",
    },
    "Parameter": {"key": "string", "value": "ModelParameter"},
    "ModelParameter": {"string_value": "string"},
}
ENUMS = {
    "DataType": ["TYPE_INVALID", *sorted(DATA_TYPES.values())],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}


@pytest.fixture(scope="module")
def schema() -> Any:
    """The schema, as the class of its message."""
    reason = 'needs the extra: pip install "moe-runtime[onnx]"'
    pytest.importorskip("google.protobuf", reason=reason)
    descriptors = pytest.importorskip("google.protobuf.descriptor_pb2", reason=reason)
    pools = pytest.importorskip("google.protobuf.descriptor_pool", reason=reason)
    factory = pytest.importorskip("google.protobuf.message_factory", reason=reason)
    file = descriptors.FileDescriptorProto(name="config.proto", syntax="proto3")
    for name, members in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, member in enumerate(members):
            enum.value.add(name=member, number=number)
    kinds = descriptors.FieldDescriptorProto
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, described) in enumerate(fields.items(), start=1):
            kind = described.rstrip("*")
            label = kinds.LABEL_OPTIONAL if described == kind else kinds.LABEL_REPEATED
            added = message.field.add(name=field, number=number, label=label)
            if kind in SCHEMA or kind in ENUMS:
                added.type = kinds.TYPE_MESSAGE if kind in SCHEMA else kinds.TYPE_ENUM
                added.type_name = kind
            else:
                added.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = pools.DescriptorPool()
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("ModelConfig"))


def parse(schema: Any, folder: Path) -> dict[str, Any]:
    """Read config.pbtxt of a version's folder."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    json_format = pytest.importorskip("google.protobuf.json_format")
    text = (folder.parent / "config.pbtxt").read_text()
    message = text_format.Parse(text, schema())
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


def test_a_batched_model_leaves_the_batch_axis_out(tmp_path: Path, schema: Any) -> None:
    folder = write_triton_repository(
        write_exported(tmp_path / "exported"),
        tmp_path / "models",
        name="moe",
        max_batch_size=64,
        preferred_batch_sizes=[16, 64],
        max_queue_delay_microseconds=200,
        instance_count=2,
        num_threads=1,
    )
    assert folder == tmp_path / "models/moe/1"
    column = {"dims": ["1"], "reshape": {}}
    assert parse(schema, folder) == {
        "name": "moe",
        "backend": "onnxruntime",
        "max_batch_size": 64,
        "input": [
            {"name": "x", "data_type": "TYPE_FP32", "dims": ["6"]},
            {"name": "ids", "data_type": "TYPE_INT64", **column},
        ],
        "output": [
            {"name": "y", "data_type": "TYPE_FP32", "dims": ["3", "4"]},
            {"name": "used", "data_type": "TYPE_BOOL", "dims": ["5"]},
        ],
        "instance_group": [{"count": 2, "kind": "KIND_CPU"}],
        "dynamic_batching": {
            "preferred_batch_size": [16, 64],
            "max_queue_delay_microseconds": "200",
        },
        "parameters": [{"key": "intra_op_thread_count", "value": {"string_value": "1"}}],
    }


def test_without_batching_every_axis_is_written_and_a_scalar_is_a_list_of_one(
    tmp_path: Path, schema: Any
) -> None:
    exported = write_exported(tmp_path / "exported", outputs=[*OUTPUTS, *PENALTY])
    folder = write_triton_repository(
        exported, tmp_path / "models", name="moe", max_batch_size=0, device="gpu"
    )
    assert parse(schema, folder) == {
        "name": "moe",
        "backend": "onnxruntime",
        "input": [
            {"name": "x", "data_type": "TYPE_FP32", "dims": ["-1", "6"]},
            {"name": "ids", "data_type": "TYPE_INT64", "dims": ["-1"]},
        ],
        "output": [
            {"name": "y", "data_type": "TYPE_FP32", "dims": ["-1", "3", "4"]},
            {"name": "used", "data_type": "TYPE_BOOL", "dims": ["-1", "5"]},
            # Triton has no scalars, and refuses an empty `reshape` where nothing is batched.
            {"name": "penalty", "data_type": "TYPE_FP32", "dims": ["1"]},
        ],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
    }


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        (PENALTY, "penalty []"),
        (values(tasks=("FLOAT", [2, "batch", 4])), "tasks [2, 'batch', 4]"),
        (values(pairs=("FLOAT", ["pairs", 4])), "pairs ['pairs', 4]"),
    ],
)
def test_what_has_no_rows_first_is_not_batched(
    tmp_path: Path, outputs: list[dict[str, Any]], named: str
) -> None:
    exported = write_exported(tmp_path / "exported", outputs=[*OUTPUTS, *outputs])
    message = f"`max_batch_size` must be 0 .* got a model with {re.escape(named)}"
    with pytest.raises(ValueError, match=message):
        write_triton_repository(exported, tmp_path / "models", name="moe")
    assert not (tmp_path / "models").exists()


def test_inputs_that_do_not_share_their_rows_are_not_batched(tmp_path: Path) -> None:
    inputs = values(x=("FLOAT", ["batch", 6]), table=("FLOAT", [7, 6]))
    exported = write_exported(tmp_path / "exported", inputs=inputs)
    with pytest.raises(ValueError, match=r"table \[7, 6\]"):
        write_triton_repository(exported, tmp_path / "models", name="moe")


@pytest.mark.parametrize("dtype", sorted(DATA_TYPES))
def test_every_type_has_its_name(tmp_path: Path, schema: Any, dtype: str) -> None:
    exported = write_exported(tmp_path / "exported", outputs=values(y=(dtype, ["batch", 2])))
    folder = write_triton_repository(exported, tmp_path / "models", name="moe")
    assert parse(schema, folder)["output"][0]["data_type"] == DATA_TYPES[dtype]


def test_a_type_that_the_backend_lacks_is_refused(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported", outputs=values(y=("BFLOAT16", ["batch", 2])))
    with pytest.raises(ValueError, match="no type for y, which is BFLOAT16"):
        write_triton_repository(exported, tmp_path / "models", name="moe")


@pytest.mark.parametrize("name", ['a "quoted" one', "back\\slash", "new\nline", "größe 7", "/x:0"])
def test_any_name_of_a_tensor_survives_the_text_format(
    tmp_path: Path, schema: Any, name: str
) -> None:
    outputs = [{"name": name, "dtype": "FLOAT", "shape": ["batch", 2]}]
    exported = write_exported(tmp_path / "exported", outputs=outputs)
    folder = write_triton_repository(exported, tmp_path / "models", name="moe")
    assert parse(schema, folder)["output"][0]["name"] == name


def test_the_weights_go_along_and_nothing_else(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported", weights=b"the weights")
    write_triton_repository(exported, tmp_path / "models", name="moe", version=3)
    found = files(tmp_path / "models")
    assert found.pop("moe/config.pbtxt").startswith(b'name: "moe"\n')
    assert found == {"moe/3/model.onnx": MODEL, "moe/3/model.onnx.data": b"the weights"}


def test_a_version_is_added_beside_the_others(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_triton_repository(write_exported(tmp_path / "old"), repository, name="moe")
    new = write_exported(tmp_path / "new", model=b"another model")
    write_triton_repository(new, repository, name="moe", version=2)
    found = files(repository)
    assert found.keys() == {"moe/config.pbtxt", "moe/1/model.onnx", "moe/2/model.onnx"}
    assert found["moe/1/model.onnx"] == MODEL
    assert found["moe/2/model.onnx"] == b"another model"


def test_an_existing_version_is_replaced_only_when_asked(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    old = write_exported(tmp_path / "old", weights=b"the weights")
    write_triton_repository(old, repository, name="moe")
    before = files(repository)
    new = write_exported(tmp_path / "new", model=b"another model")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        write_triton_repository(new, repository, name="moe")
    assert files(repository) == before
    write_triton_repository(new, repository, name="moe", overwrite=True)
    # The old weights are gone too, and nothing unfinished is left.
    del before["moe/1/model.onnx.data"]
    assert files(repository) == {**before, "moe/1/model.onnx": b"another model"}


def test_a_configuration_is_not_changed_for_other_versions_unless_asked(tmp_path: Path) -> None:
    exported, repository = write_exported(tmp_path / "exported"), tmp_path / "models"
    write_triton_repository(exported, repository, name="moe")
    before = files(repository)
    with pytest.raises(FileExistsError, match=r"config\.pbtxt differs .* `overwrite=True`"):
        write_triton_repository(exported, repository, name="moe", version=2, max_batch_size=8)
    assert files(repository) == before
    write_triton_repository(
        exported, repository, name="moe", version=2, max_batch_size=8, overwrite=True
    )
    assert b"max_batch_size: 8" in files(repository)["moe/config.pbtxt"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    theirs = tmp_path / "models/moe/1/notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    exported = write_exported(tmp_path / "exported")
    with pytest.raises(FileExistsError, match=r"holds no model\.onnx"):
        write_triton_repository(exported, tmp_path / "models", name="moe", overwrite=True)
    assert theirs.read_text() == "mine"


@pytest.mark.parametrize("version_exists", [False, True])
def test_a_copy_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, version_exists: bool
) -> None:
    exported, repository = write_exported(tmp_path / "exported"), tmp_path / "models"
    repository.mkdir()
    if version_exists:
        write_triton_repository(exported, repository, name="moe", max_batch_size=8)
    before = files(repository)

    def fail(_source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        write_triton_repository(exported, repository, name="moe", overwrite=True)
    assert files(repository) == before
    assert [path.name for path in repository.iterdir()] == ["moe"] * version_exists


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, r"`name` must consist of .* got 'a/b'"),
        ({"name": ""}, "`name` must consist of"),
        ({"name": "..", "version": 1}, "`name` must consist of"),
        ({"version": 0}, "`version` must be an integer >= 1, got 0"),
        ({"max_batch_size": -1}, "`max_batch_size` must be an integer >= 0, got -1"),
        ({"preferred_batch_sizes": [2000]}, r"must be in \[1, max_batch_size=1024\], got \[2000\]"),
        ({"preferred_batch_sizes": [0]}, "`preferred_batch_sizes` must be an integer >= 1, got 0"),
        (
            {"max_batch_size": 0, "preferred_batch_sizes": [4]},
            r"must be in \[1, max_batch_size=0\]",
        ),
        (
            {"max_batch_size": 0, "max_queue_delay_microseconds": 5},
            "`max_queue_delay_microseconds` must be 0 with `max_batch_size`=0",
        ),
        ({"instance_count": 0}, "`instance_count` must be an integer >= 1, got 0"),
        ({"num_threads": 0}, "`num_threads` must be an integer >= 1, got 0"),
        ({"device": "tpu"}, "`device` must be one of cpu, gpu, got 'tpu'"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    exported = write_exported(tmp_path / "exported")
    with pytest.raises(ValueError, match=message):
        write_triton_repository(exported, tmp_path / "models", **{"name": "moe", **options})
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("missing", ["model.onnx", "model_info.json"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, missing: str) -> None:
    exported = write_exported(tmp_path / "exported")
    (exported / missing).unlink()
    with pytest.raises(ModelError, match=rf"{re.escape(missing)} (is missing|cannot be read)"):
        write_triton_repository(exported, tmp_path / "models", name="moe")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    exported = write_exported(tmp_path / "exported", weights=b"the weights")
    content = (exported / name).read_bytes()
    (exported / name).write_bytes(content[:-1])
    with pytest.raises(ModelError, match=f"{re.escape(name)} is damaged"):
        write_triton_repository(exported, tmp_path / "models", name="moe")


def test_weights_that_are_missing_or_of_another_export_are_noticed(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "large", weights=b"the weights")
    (exported / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing"):
        write_triton_repository(exported, tmp_path / "models", name="moe")
    small = write_exported(tmp_path / "small")
    (small / "model.onnx.data").write_bytes(b"of an earlier export")
    folder = write_triton_repository(small, tmp_path / "models", name="moe")
    assert files(folder) == {"model.onnx": MODEL}


@pytest.mark.parametrize("text", ["{", "[]", '{"inputs": []}', json.dumps({"inputs": INPUTS})])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    exported = write_exported(tmp_path / "exported")
    (exported / "model_info.json").write_text(text)
    with pytest.raises(ModelError, match=r"model_info\.json is (damaged|not what an export)"):
        write_triton_repository(exported, tmp_path / "models", name="moe")
