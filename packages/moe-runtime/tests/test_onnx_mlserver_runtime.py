"""The runtime that goes beside a model answers as ONNX Runtime does, or says what is wrong.

MLServer is not installed here: its classes are stood in for. `nox -s serve` asks a real one.
"""

import asyncio
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _passed_on import write_exported
from numpy.typing import NDArray

from moe_runtime.onnx import write_mlserver_folder

for extra in ("onnx", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)
# Inputs that are called as NumPy calls their types, beside those that other tests change.
INTEGERS = ("int8", "int16", "uint8", "uint16", "uint32", "uint64")


class InferenceError(Exception):
    """What MLServer answers with status 400."""


class MLModel:
    def __init__(self, settings: SimpleNamespace) -> None:
        self.settings, self.name, self.version = settings, settings.name, None


async def get_model_uri(settings: SimpleNamespace) -> str:
    return str(settings.parameters.uri)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The model's runtime, imported from its folder."""
    kinds = ("InferenceRequest", "InferenceResponse", "MetadataTensor", "RequestInput")
    contents: dict[str, dict[str, object]] = {
        "mlserver": {"MLModel": MLModel},
        "mlserver.errors": {"InferenceError": InferenceError},
        "mlserver.types": dict.fromkeys((*kinds, "ResponseOutput"), SimpleNamespace),
        "mlserver.utils": {"get_model_uri": get_model_uri},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, members in contents.items():
            module = ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        parent = tmp_path_factory.mktemp("models")
        content, weights = every_type(parent / "built")
        exported = write_exported(parent / "exported", model=content, weights=weights)
        folder = write_mlserver_folder(exported, parent / "moe", name="moe")
        spec = importlib.util.spec_from_file_location("runtime", folder / "moe_onnx_runtime.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        parameters = SimpleNamespace(uri=folder / "model.onnx", extra={"num_threads": 1})
        model = found.OnnxModel(SimpleNamespace(name="moe", parameters=parameters))
        assert asyncio.run(model.load())
        yield model


def every_type(folder: Path) -> tuple[bytes, bytes]:
    """A model that looks up rows of a table, beside it, and hands values of every type through."""
    from onnx import TensorProto, helper, numpy_helper, save  # noqa: PLC0415 - the extra

    kinds = {"x": "FLOAT", "half": "FLOAT16", "double": "DOUBLE", "small": "INT32", "flag": "BOOL"}
    kinds |= {name: name.upper() for name in INTEGERS}
    shapes: dict[str, list[str | int]] = {name: ["batch", 2] for name in kinds}
    kinds["ids"], shapes["ids"] = "INT64", ["batch"]
    inputs = [
        helper.make_tensor_value_info(name, getattr(TensorProto, kind), shapes[name])
        for name, kind in kinds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(f"{name}_out", getattr(TensorProto, kind), shapes[name])
        for name, kind in kinds.items()
    ]
    outputs.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 3]))
    outputs.append(helper.make_tensor_value_info("total", TensorProto.FLOAT, []))
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    nodes.append(helper.make_node("Gather", ["table", "ids"], ["rows"]))
    nodes.append(helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0))
    table = numpy_helper.from_array(TABLE, "table")
    graph = helper.make_graph(nodes, "every_type", inputs, outputs, [table])
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    folder.mkdir()
    path, beside = folder / "model.onnx", "model.onnx.data"
    save(model, path, save_as_external_data=True, location=beside, size_threshold=0)
    return path.read_bytes(), (folder / beside).read_bytes()


def draw_integers(rng: np.random.Generator, name: str, num_rows: int) -> NDArray[Any]:
    """Draw from the whole range of a type."""
    limits = np.iinfo(name)
    return rng.integers(
        limits.min, limits.max, (num_rows, 2), dtype=np.dtype(name).type, endpoint=True
    )


def draw(num_rows: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, 2))
    return {
        "x": x.astype(np.float32),
        "half": x.astype(np.float16),
        "double": x,
        "small": rng.integers(-9, 9, (num_rows, 2), dtype=np.int32),
        **{name: draw_integers(rng, name, num_rows) for name in INTEGERS},
        "flag": x > 0,
        "ids": rng.integers(len(TABLE), size=num_rows),
    }


DATATYPES = {"x": "FP32", "half": "FP16", "double": "FP64", "small": "INT32", "flag": "BOOL"}
DATATYPES |= {"ids": "INT64"} | {name: name.upper() for name in INTEGERS}


def request(feeds: dict[str, NDArray[Any]], **changed: dict[str, object]) -> SimpleNamespace:
    """A request as it arrives, with some inputs changed."""
    inputs = []
    for name, array in feeds.items():
        fields = {"datatype": DATATYPES[name], "shape": list(array.shape), "data": array.tolist()}
        inputs.append(SimpleNamespace(**{"name": name, **fields, **changed.get(name, {})}))
    return SimpleNamespace(inputs=inputs, outputs=None)


def ask(runtime: Any, payload: SimpleNamespace) -> dict[str, Any]:
    response = asyncio.run(runtime.predict(payload))
    assert response.model_name == "moe"
    return {each.name: each for each in response.outputs}


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 300])
def test_every_type_comes_back_to_the_bit(runtime: Any, num_rows: int) -> None:
    feeds = draw(num_rows)
    answer = ask(runtime, request(feeds))
    for name, array in feeds.items():
        found = answer[f"{name}_out"]
        assert (found.datatype, found.shape) == (DATATYPES[name], list(array.shape))
        assert np.array_equal(np.array(found.data, array.dtype), array.ravel())
    assert answer["rows"].data == TABLE[feeds["ids"]].ravel().tolist()
    assert answer["total"].shape == []


def test_values_may_be_flat_and_whole_numbers_may_stand_for_others(runtime: Any) -> None:
    feeds = draw(2)
    answer = ask(runtime, request(feeds, x={"data": [1, 2, 3, 4]}))
    assert answer["total"].data == [10.0]


def test_a_request_may_ask_for_some_outputs(runtime: Any) -> None:
    payload = request(draw(2))
    payload.outputs = [SimpleNamespace(name="total"), SimpleNamespace(name="rows")]
    assert list(ask(runtime, payload)) == ["total", "rows"]


def test_the_metadata_says_what_goes_in_and_comes_out(runtime: Any) -> None:
    told = {each.name: (each.datatype, each.shape) for each in runtime.inputs}
    assert told["x"] == ("FP32", [-1, 2])
    assert told["ids"] == ("INT64", [-1])
    told = {each.name: (each.datatype, each.shape) for each in runtime.outputs}
    assert told["total"] == ("FP32", [])
    assert told["rows"] == ("FP32", [-1, 3])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("x", {"name": "z"}, "`inputs` must be x, .* got z, "),
        ("x", {"datatype": "FP64"}, "`x` must have the datatype FP32, got FP64"),
        ("x", {"shape": [4]}, r"`x` must have the shape \[batch, 2\], got \[4\]"),
        ("x", {"shape": [2, 3]}, r"`x` must have the shape \[batch, 2\], got \[2, 3\]"),
        ("x", {"shape": [-2, 2]}, r"`x` must have the shape \[batch, 2\], got \[-2, 2\]"),
        ("ids", {"shape": [3], "data": [0, 0, 0]}, r"the shape \[batch=2\], got \[3\]"),
        ("x", {"data": [1.0, 2.0, 3.0]}, "`x` must hold 4 values, .* got 3"),
        ("x", {"data": [[1.0], [2.0, 3.0, 4.0]]}, "`x` must be a list of numbers"),
        ("x", {"data": ["1", "2", "3", "4"]}, r"`x` must hold numbers \(float32\) only"),
        ("x", {"data": [None] * 4}, r"`x` must hold numbers \(float32\) only"),
        ("x", {"data": [True] * 4}, r"`x` must hold numbers \(float32\) only"),
        ("x", {"data": [1e39] * 4}, r"in the range of float32, got 1e\+39"),
        ("half", {"data": [1e5] * 4}, "in the range of float16, got 100000.0"),
        ("ids", {"data": [0.5, 1.5]}, r"`ids` must hold integers \(int64\) only"),
        ("ids", {"data": [2**63] * 2}, "in the range of int64, got 9223372036854775808"),
        ("ids", {"data": [2**64, 0]}, r"`ids` must hold integers \(int64\) only"),
        ("small", {"data": [2**31, 0, 0, 0]}, "in the range of int32, got 2147483648"),
        ("uint8", {"data": [256, 0, 0, 0]}, "in the range of uint8, got 256"),
        ("uint64", {"data": [-1, 0, 0, 0]}, "in the range of uint64, got -1"),
        ("uint8", {"data": [0.5] * 4}, r"`uint8` must hold integers \(uint8\) only"),
        ("flag", {"data": [0, 1, 0, 1]}, r"`flag` must hold booleans \(bool\) only"),
        ("ids", {"data": [4, 0]}, "the model cannot take these inputs: .*indices"),
    ],
)
def test_what_the_model_cannot_take_is_an_error_of_the_request(
    runtime: Any, name: str, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InferenceError, match=message):
        ask(runtime, request(draw(2), **{name: fields}))
    # The next one is answered.
    assert ask(runtime, request(draw(2)))


def test_inputs_come_once_each_and_outputs_are_known(runtime: Any) -> None:
    payload = request(draw(2))
    payload.inputs.append(payload.inputs[0])
    with pytest.raises(InferenceError, match=r"`inputs` must be .*, each once, got x, .*, x"):
        ask(runtime, payload)
    payload = request({})
    with pytest.raises(InferenceError, match="got none"):
        ask(runtime, payload)
    payload = request(draw(2))
    payload.outputs = [SimpleNamespace(name="z")]
    with pytest.raises(InferenceError, match=r"`outputs` must be among .*, got z"):
        ask(runtime, payload)


def test_infinite_and_undefined_values_pass_through(runtime: Any) -> None:
    values = [np.inf, -np.inf, np.nan, 0.0]
    answer = ask(runtime, request(draw(2), x={"data": values}))
    np.testing.assert_array_equal(answer["x_out"].data, values)
