"""A session gives ONNX Runtime's answers where it was asked to, and says what is wrong."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _exported import OUTPUTS, flip_bit, save_graph, save_scaled, sign
from _reference import DIM

import moe_runtime
from moe_runtime.onnx import ModelError, Session, TensorSpec
from moe_runtime.onnx._provider import run_bound

REASON = 'needs the extra: pip install "moe-runtime[onnx]"'
ort = pytest.importorskip("onnxruntime", reason=REASON)
for extra in ("onnx", "onnxscript"):
    pytest.importorskip(extra, reason=REASON)

# Imports what serves and verifies a model as if the package itself imported nothing.
WITHOUT_TORCH = """
import sys, types
package, folder = sys.argv[1:]
for name, path in (("moe_runtime", package), ("moe_runtime.onnx", package + "/onnx")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from moe_runtime.onnx._session import Session
from moe_runtime.onnx._stored import verify
assert verify(folder).holds
assert "torch" not in sys.modules
"""


def draw(num_rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((num_rows, DIM), dtype=np.float32)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_answers_are_those_of_onnx_runtime_to_the_bit(exported: Path, num_rows: int) -> None:
    x = draw(num_rows)
    model = exported / "model.onnx"
    plain = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = dict(zip(OUTPUTS, plain.run(OUTPUTS, {"x": x}), strict=True))
    for path in (exported, str(exported), model):
        answers = Session(path, num_threads=1).run(x=x)
        assert answers.keys() == expected.keys()
        for name, answer in answers.items():
            np.testing.assert_array_equal(answer, expected[name])


def test_inputs_and_outputs_say_name_dtype_and_shape(exported: Path, tmp_path: Path) -> None:
    session = Session(exported)
    float32, int64 = np.dtype("float32"), np.dtype("int64")
    assert session.inputs == (TensorSpec("x", float32, ("batch", DIM)),)
    assert [value.shape for value in session.outputs] == [("batch", 4), (), ("batch", 5)]
    assert Session(save_scaled(tmp_path / "a.onnx")).inputs[1] == TensorSpec(
        "ids", int64, ("batch",)
    )


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_bound_outputs_are_those_of_a_plain_run(exported: Path, num_rows: int) -> None:
    session = Session(exported, num_threads=1)
    # Not contiguous: a device copies bytes.
    x = np.asfortranarray(draw(num_rows))
    bound = run_bound(session._session, {"x": x}, OUTPUTS, "cpu")
    for answer, expected in zip(bound, session.run(x=x).values(), strict=True):
        np.testing.assert_array_equal(answer, expected)


def test_a_run_asks_the_model_for_nothing_but_answers(exported: Path) -> None:
    class OnlyRuns:
        def run(self, names: list[str], _inputs: object) -> list[str]:
            return names

    session = Session(exported)
    session._session = OnlyRuns()
    assert list(session.run(x=draw(2))) == OUTPUTS


def test_an_input_may_have_any_name(tmp_path: Path) -> None:
    inputs = {"self": ("FLOAT", ["batch"])}
    path = tmp_path / "a.onnx"
    save_graph(path, [("Neg", ["self"], "y.0")], inputs, {"y.0": ("FLOAT", ["batch"])})
    feeds = {"self": np.ones(2, np.float32)}
    assert Session(path).run(**feeds)["y.0"].tolist() == [-1, -1]


def test_serving_and_verifying_need_no_pytorch(exported: Path) -> None:
    package = str(Path(moe_runtime.__file__).parent)
    command = [sys.executable, "-c", WITHOUT_TORCH, package, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


X, IDS = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "`inputs` must be x, ids, got none."),
        ({"x": X}, ValueError, "`inputs` must be x, ids, got x."),
        ({"x": X, "ids": IDS, "z": X}, ValueError, "`inputs` must be x, ids, got x, ids, z."),
        ({"x": X.tolist(), "ids": IDS}, TypeError, "`x` must be a numpy.ndarray, got list."),
        ({"x": X.astype(float), "ids": IDS}, ValueError, "must have dtype float32, got float64."),
        ({"x": X.astype(">f4"), "ids": IDS}, ValueError, "must have dtype float32, got >f4."),
        ({"x": X, "ids": IDS.astype(np.int32)}, ValueError, "must have dtype int64, got int32."),
        ({"x": X[:, :2], "ids": IDS}, ValueError, "must have shape (batch, 3), got (4, 2)."),
        ({"x": X[0], "ids": IDS}, ValueError, "must have shape (batch, 3), got (3,)."),
        (
            {"x": X, "ids": IDS[:3]},
            ValueError,
            "`ids` must have shape (batch,) with batch=4, as the inputs before it, got (3,).",
        ),
        ({"x": X, "ids": IDS[:, None]}, ValueError, "`ids` must have shape (batch,), got (4, 1)."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_inputs_that_do_not_fit_are_refused(
    tmp_path: Path, inputs: dict[str, Any], error: type[Exception], message: str
) -> None:
    session = Session(save_scaled(tmp_path / "a.onnx"))
    with pytest.raises(error, match=re.escape(message)):
        session.run(**inputs)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.9, 1.0])
def test_one_flipped_bit_of_an_export_is_found(
    exported: Path, tmp_path: Path, position: float
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    flip_bit(folder / "model.onnx", position)
    with pytest.raises(ModelError, match=r"model\.onnx is damaged: its SHA-256 is "):
        Session(folder)


def test_weights_beside_the_model_are_part_of_it(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    weights = folder / "model.onnx.data"
    model = onnx.load(folder / "model.onnx")
    options = {"save_as_external_data": True, "size_threshold": 100}
    onnx.save(model, folder / "model.onnx", location=weights.name, **options)
    sign(folder)
    x = draw(5)
    expected = Session(exported).run(x=x)["output"]
    np.testing.assert_array_equal(Session(folder).run(x=x)["output"], expected)
    flip_bit(weights, 0.5)
    with pytest.raises(ModelError, match=r"model\.onnx\.data is damaged"):
        Session(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing"):
        Session(folder)
    with pytest.raises(ModelError, match=r"model\.onnx cannot be opened by ONNX Runtime.*\.data"):
        Session(folder / "model.onnx")


def test_what_is_no_model_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match="`path` must be a path, got NoneType"):
        Session(nothing)
    with pytest.raises(ModelError, match=r"absent does not exist\."):
        Session(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"has no model\.onnx\."):
        Session(tmp_path)
    whole = (exported / "model.onnx").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path = tmp_path / "a.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"a\.onnx cannot be opened by ONNX Runtime"):
            Session(path)


def test_a_dtype_that_numpy_lacks_is_refused(tmp_path: Path) -> None:
    spec = {"x": ("BFLOAT16", ["batch"])}
    path = save_graph(tmp_path / "a.onnx", [("Identity", ["x"], "y")], spec, {"y": spec["x"]})
    with pytest.raises(ModelError, match=r"'x' is a tensor\(bfloat16\)"):
        Session(path)


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, True, "2"])
def test_a_number_of_threads_is_at_least_1(exported: Path, num_threads: Any) -> None:
    with pytest.raises(ValueError, match="`num_threads` must be an integer >= 1, got"):
        Session(exported, num_threads=num_threads)


def test_a_provider_that_is_not_known_is_refused(exported: Path) -> None:
    message = "`provider` must be one of ['cpu', 'cuda'], got 'gpu'."
    with pytest.raises(ValueError, match=re.escape(message)):
        Session(exported, provider="gpu")


def test_cuda_without_its_package_names_the_extra(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = 'must not both be installed: .* pip install "moe-runtime\\[onnx-gpu\\]"'
    with pytest.raises(RuntimeError, match=message) as caught:
        Session(exported, provider="cuda")
    assert "are both installed, and" not in str(caught.value)
    monkeypatch.setattr(metadata, "version", lambda _name: "1.32.0")
    with pytest.raises(RuntimeError, match="onnxruntime and onnxruntime-gpu are both installed"):
        Session(exported, provider="cuda")


def test_a_silent_fallback_to_the_cpu_is_an_error(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session = ort.InferenceSession

    def fall_back(path: str, options: Any, *, providers: list[str]) -> Any:
        assert providers == ["CUDAExecutionProvider"]
        return open_session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", fall_back)
    message = r"`provider`='cuda' cannot be used.*offers \['CPUExecutionProvider'\] instead"
    with pytest.raises(RuntimeError, match=message):
        Session(exported, provider="cuda")
