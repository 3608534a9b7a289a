"""A folder for MLServer is whole, stands alone, and replaces nothing unasked."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from _passed_on import MODEL, files, values, write_exported

from moe_runtime.onnx import write_mlserver_folder


def test_a_folder_holds_the_model_its_settings_and_a_runtime(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported", weights=b"the weights")
    folder = write_mlserver_folder(exported, tmp_path / "models/moe", name="moe-1.0", num_threads=2)
    assert folder == tmp_path / "models/moe"
    found = files(folder)
    assert found["model.onnx"] == MODEL
    assert found["model.onnx.data"] == b"the weights"
    settings = json.loads(found["model-settings.json"])
    assert settings["name"] == "moe-1.0"
    assert settings["parameters"] == {"uri": "./model.onnx", "extra": {"num_threads": 2}}
    module, name = settings["implementation"].split(".")
    assert f"class {name}(MLModel)".encode() in found[f"{module}.py"]
    assert json.loads(found["settings.json"])["parallel_workers"] == 0
    assert found.keys() == {
        "model-settings.json",
        "model.onnx",
        "model.onnx.data",
        "moe_onnx_runtime.py",
        "settings.json",
    }


def test_the_runtime_imports_what_a_server_has(tmp_path: Path) -> None:
    folder = write_mlserver_folder(
        write_exported(tmp_path / "exported"), tmp_path / "moe", name="moe"
    )
    tree = ast.parse((folder / "moe_onnx_runtime.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            imported.add(node.module)
    packages = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert packages == {"mlserver", "numpy", "onnxruntime"}


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "moe"
    old = write_exported(tmp_path / "old", weights=b"the weights")
    write_mlserver_folder(old, folder, name="moe")
    before = files(folder)
    new = write_exported(tmp_path / "new", model=b"another model")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        write_mlserver_folder(new, folder, name="moe")
    assert files(folder) == before
    write_mlserver_folder(new, folder, name="moe", overwrite=True)
    del before["model.onnx.data"]
    assert files(folder) == {**before, "model.onnx": b"another model"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moe", "new", "old"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported")
    with pytest.raises(FileExistsError, match=r"holds no model-settings\.json"):
        write_mlserver_folder(exported, exported, name="moe", overwrite=True)
    assert (exported / "model.onnx").read_bytes() == MODEL


def test_a_type_that_no_request_can_have_is_refused(tmp_path: Path) -> None:
    exported = write_exported(tmp_path / "exported", inputs=values(x=("BFLOAT16", ["batch", 6])))
    with pytest.raises(ValueError, match="The V2 protocol has no type for x, which is BFLOAT16"):
        write_mlserver_folder(exported, tmp_path / "moe", name="moe")
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, r"`name` must consist of .* got 'a/b'"),
        ({"num_threads": 0}, "`num_threads` must be an integer >= 1, got 0"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    exported = write_exported(tmp_path / "exported")
    with pytest.raises(ValueError, match=message):
        write_mlserver_folder(exported, tmp_path / "moe", **{"name": "moe", **options})
    assert not (tmp_path / "moe").exists()
