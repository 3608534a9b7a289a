"""The command exports what `save_pretrained` has saved, with rows of the user's or its own."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from _command import refusal, run_command
from _reference import DIM, NUM_IDS, make_mixture
from torch import Tensor

import moe_runtime.onnx
from moe_runtime import (
    CometRouter,
    Experts,
    HashRouter,
    MixtureOfExperts,
    PretrainedModule,
    TopKRouter,
)
from moe_runtime._cli import _saved_model
from moe_runtime.onnx import Session, Verification

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

Capture = pytest.CaptureFixture[str]

# A model of the user's, which only its module defines.
MODULE = """
import torch
import moe_runtime

class Tower(moe_runtime.PretrainedModule):
    def __init__(self, width):
        super().__init__()
        router = moe_runtime.TopKRouter(width, 3, k=2)
        self.mixture = moe_runtime.MixtureOfExperts(router, moe_runtime.Experts(3, (width, 4)))

    def forward(self, x, offset):
        return self.mixture(x).output + offset
"""


class Call(NamedTuple):
    model: Any
    inputs: tuple[Tensor, ...]
    folder: str
    options: dict[str, Any]


@pytest.fixture(autouse=True)
def _path_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Note what would be exported, which takes seconds."""
    found: list[Call] = []

    def export(model: Any, inputs: tuple[Tensor, ...], folder: str, **options: Any) -> Verification:
        found.append(Call(model, inputs, folder, options))
        return Verification((1,), {"y": 0.5}, (), 0)

    monkeypatch.setattr(moe_runtime.onnx, "export", export)
    return found


def save(model: PretrainedModule, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_mixture_alone_needs_no_rows(capsys: Capture, tmp_path: Path) -> None:
    model = make_mixture("comet", 3)
    saved, folder = save(model, tmp_path / "saved"), tmp_path / "out"
    done = run_command(capsys, "export", saved, folder)
    assert done.code == 0, done.err
    assert "drew 512 rows at random" in done.out
    assert f"wrote {folder}: a MixtureOfExperts, hard\n" in done.out
    info = json.loads((folder / "model_info.json").read_text())
    assert info["hard"] is True
    lines = [line.split() for line in done.out.splitlines()]
    for name, error in info["verification"]["output_errors"].items():
        assert [name, f"{error:.2g}"] in lines
    assert list(Session(folder).run(x=np.zeros((2, DIM), np.float32))) == [
        "output",
        "penalty",
        "weights",
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_drawn", [True, False])
def test_a_mixture_in_half_precision_is_exported(
    capsys: Capture, tmp_path: Path, dtype: torch.dtype, *, is_drawn: bool
) -> None:
    saved, folder = save(make_mixture("top_k", 3).to(dtype), tmp_path / "saved"), tmp_path / "out"
    # What NumPy has of it, and what the exported model takes.
    taken = np.float16 if dtype is torch.float16 else np.float32
    rows = np.random.default_rng(0).standard_normal((300, DIM)).astype(taken)
    np.save(tmp_path / "rows.npy", rows)
    given = [] if is_drawn else ["--inputs", tmp_path / "rows.npy"]
    done = run_command(capsys, "export", saved, folder, *given)
    assert done.code == 0, done.err
    assert list(Session(folder).run(x=rows[:2])) == ["output", "penalty", "weights"]


def test_a_class_of_the_users_is_found_where_it_is_imported_from(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[Call]
) -> None:
    (tmp_path / "tower_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    sys.path.append(str(tmp_path))
    import tower_of_a_user  # type: ignore[import-not-found] # noqa: PLC0415

    save(tower_of_a_user.Tower(5), tmp_path / "saved")
    sys.path.pop()
    monkeypatch.delitem(sys.modules, "tower_of_a_user")
    x, offset = np.ones((4, 5), np.float32), np.zeros((4, 1), np.float32)
    np.savez("rows.npz", offset=offset, x=x)
    done = run_command(
        capsys, "export", "saved", "out", "--inputs", "rows.npz", "--import", "tower_of_a_user"
    )
    assert done.code == 0, done.err
    assert "tower_of_a_user" in sys.modules
    (call,) = calls
    # As `forward` takes them, not as they are in the file.
    assert call.options["input_names"] == ["x", "offset"]
    assert call.inputs[0].tolist() == x.tolist()
    assert call.options["output_names"] == ["output_0"]


def test_what_was_asked_for_is_passed_on_and_nothing_else(
    capsys: Capture, tmp_path: Path, calls: list[Call]
) -> None:
    saved = save(make_mixture("top_k", 3), tmp_path / "saved")
    assert run_command(capsys, "export", saved, "out").code == 0
    names = {"input_names": ["x"], "output_names": ["output", "penalty", "weights"]}
    assert calls[0].folder == "out"
    assert calls[0].options == {"hard": True, **names}
    options = ["--soft", "--target", "scan", "--tolerance", "0.1", "--canonical"]
    np.save(tmp_path / "rows.npy", np.ones((3, DIM), np.float32))
    rows = ["--inputs", tmp_path / "rows.npy", "--outputs", "y,p,w"]
    done = run_command(capsys, "export", saved, "out", *options, *rows)
    assert "drew" not in done.out
    assert calls[1].options == {
        "hard": False,
        "input_names": ["x"],
        "output_names": ["y", "p", "w"],
        "target": "scan",
        "tolerance": 0.1,
        "canonical": True,
    }
    assert calls[1].inputs[0].tolist() == [[1.0] * DIM] * 3


def test_ids_are_drawn_for_hash_from_its_table() -> None:
    inputs = _saved_model.draw_inputs(make_mixture("hash"))
    assert list(inputs) == ["x", "router_input"]
    ids = inputs["router_input"]
    assert ids.shape == (512,)
    assert ids.dtype is torch.int64
    # All of 40 in 512 draws: each is missed with a chance of 2e-6.
    assert set(ids.tolist()) == set(range(NUM_IDS))


def test_a_router_that_reads_other_features_gets_its_own() -> None:
    model = MixtureOfExperts(TopKRouter(9, 3, k=2), Experts(3, (4, 2)))
    inputs = _saved_model.draw_inputs(model)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "x": (512, 4),
        "router_input": (512, 9),
    }
    model(*inputs.values())
    model.half()
    model(*_saved_model.draw_inputs(model).values())


def test_drawn_rows_are_the_same_each_time() -> None:
    model = make_mixture("comet")
    first, second = (_saved_model.draw_inputs(model)["x"] for _ in range(2))
    assert torch.equal(first, second)
    assert abs(float(first.std()) - 1) < 0.1


class Pair(PretrainedModule):
    def __init__(self) -> None:
        super().__init__()
        self.router = CometRouter(3, 4, k=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Taking(PretrainedModule):
    def forward(self, x: Tensor, _y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        return x if z is None else z


def test_outputs_without_names_are_numbered() -> None:
    assert _saved_model.output_names(Pair(), {"x": torch.ones(3, 1)}) == ["output_0", "output_1"]


@pytest.mark.parametrize("names", [["b", "a"], ["x", "b"], ["_y"]])
def test_names_that_are_not_the_models_are_refused(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **{name: np.ones((2, 1)) for name in names})  # type: ignore[arg-type]
    message = r"by the names of the model's arguments, \['x', '_y', 'z'\], the first 1 at least"
    with pytest.raises(ValueError, match=message):
        _saved_model.read_inputs(Taking(), path)


def test_an_input_cannot_be_skipped(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.ones((2, 1)), z=np.zeros((2, 1)))
    with pytest.raises(
        ValueError, match=r"the first 1 at least and none left out, got \['x', 'z'\]"
    ):
        _saved_model.read_inputs(Taking(), path)


def test_a_model_that_is_no_mixture_needs_rows(
    capsys: Capture, tmp_path: Path, calls: list[Call]
) -> None:
    saved = save(Pair(), tmp_path / "saved")
    message = "`--inputs` must be given for a Pair: only a mixture's are known."
    assert refusal(capsys, "export", saved, tmp_path / "out") == message
    assert calls == []


def test_a_saved_model_that_is_none_is_refused(capsys: Capture, tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refusal(capsys, "export", tmp_path / "absent", "out")
    saved = save(HashRouter(5, 2), tmp_path / "saved")
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert str(weights) in refusal(capsys, "export", saved, "out")


def test_a_module_that_cannot_be_imported_is_named(capsys: Capture, tmp_path: Path) -> None:
    arguments = ["export", tmp_path, "out", "--import", "no_such_module"]
    assert refusal(capsys, *arguments) == (
        "`--import` must name a module that can be imported here, got 'no_such_module'."
    )


def test_a_module_that_is_no_python_is_said_in_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    given = refusal(capsys, "export", tmp_path, "out", "--import", "broken_module")
    assert given == "invalid syntax (broken_module.py, line 1)"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"1,2", "`--inputs` must be a file .npz or .npy, got"),
        ("rows.npz", b"text", "rows.npz cannot be read as .npz"),
        ("rows.npy", b"text", "rows.npy cannot be read as .npy"),
        ("rows.npy", b"", "rows.npy cannot be read as .npy"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(
    capsys: Capture, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    saved = save(make_mixture("comet"), tmp_path / "saved")
    (tmp_path / name).write_bytes(content)
    given = refusal(capsys, "export", saved, tmp_path / "out", "--inputs", tmp_path / name)
    assert message in given
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rows.npz", "rows.npy"])
def test_rows_that_are_not_there_are_named(capsys: Capture, tmp_path: Path, name: str) -> None:
    saved = save(make_mixture("comet"), tmp_path / "saved")
    given = refusal(capsys, "export", saved, tmp_path / "out", "--inputs", tmp_path / name)
    assert str(tmp_path / name) in given


def test_rows_must_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=np.array(["a", "b"]))
    with pytest.raises(TypeError, match="'x' must hold numbers or booleans, got <U1"):
        _saved_model.read_inputs(Pair(), path)


def test_pickled_rows_are_not_loaded(capsys: Capture, tmp_path: Path) -> None:
    saved = save(make_mixture("comet"), tmp_path / "saved")
    path = tmp_path / "rows.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert "allow_pickle=False" in refusal(capsys, "export", saved, "out", "--inputs", path)


def test_rows_of_another_width_or_dtype_are_refused(capsys: Capture, tmp_path: Path) -> None:
    saved = save(make_mixture("comet"), tmp_path / "saved")
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((9, DIM), np.float64))
    message = "`x` must have the parameters' dtype torch.float32, got torch.float64."
    assert refusal(capsys, "export", saved, tmp_path / "out", "--inputs", path) == message
    np.save(path, np.zeros((9, DIM + 1), np.float32))
    given = refusal(capsys, "export", saved, tmp_path / "out", "--inputs", path)
    assert f"`x` must have shape (..., {DIM}), got" in given
