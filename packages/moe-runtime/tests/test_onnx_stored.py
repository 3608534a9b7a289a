"""An export is verified where it is: what is damaged is refused, what differs is measured."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _exported import (
    OUTPUTS,
    flip_bit,
    save_gates,
    save_mean,
    save_single,
    sign,
    write_examples,
)
from _reference import DIM
from numpy.typing import NDArray

from moe_runtime.onnx import ModelError, Session, StoredVerification, verify

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

FILES = ["examples.npz", "model.onnx"]
# float32, one rounding of numbers around 1.
ROUNDING = 1e-6


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def write_mean(folder: Path, x: NDArray[Any], **changed: Any) -> Path:
    """Write an export whose right answers are its input, and the mean of that."""
    folder.mkdir(exist_ok=True)
    save_mean(folder / "model.onnx")
    write_examples(folder, {"x": x}, {"y": x, "mean": x.mean(), **changed})
    return folder


def draw(num_rows: int = 40) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((num_rows, 3), dtype=np.float32)


def test_an_export_holds_where_it_is(exported: Path) -> None:
    result = verify(exported)
    assert result.holds
    assert list(result.output_errors) == OUTPUTS
    # float32, two layers.
    assert 0 < result.largest_error < 2e-6
    assert result.tolerance == 1e-4
    assert result.batch_sizes == (0, 1, 2, 7, 33, 700)


def test_one_answer_that_differs_is_measured_and_does_not_hold(tmp_path: Path) -> None:
    x = draw()
    other = x.copy()
    row, column = np.argwhere(np.abs(x) < 0.5)[-1]
    other[row, column] += 0.25
    result = verify(write_mean(tmp_path, x, y=other))
    assert not result.holds
    assert result.output_errors["y"] == pytest.approx(0.25, abs=ROUNDING)
    assert result.output_errors["mean"] < ROUNDING
    assert verify(tmp_path, tolerance=0.26).holds


def test_above_1_a_difference_counts_relative_to_the_answer(tmp_path: Path) -> None:
    x = np.full((4, 3), 999.0, np.float32)
    result = verify(write_mean(tmp_path, x, y=x + 1))
    assert result.output_errors["y"] == pytest.approx(1e-3, rel=1e-5)


def test_int8_is_measured_by_its_relative_root_mean_square(tmp_path: Path) -> None:
    x = draw()
    other = x * np.float32(1.125)  # exact
    write_mean(tmp_path, x, y=other)
    sign(tmp_path, target="int8")
    assert verify(tmp_path).output_errors["y"] == pytest.approx(1 / 9, rel=1e-6)


def test_answers_of_the_whole_batch_are_compared_for_all_rows(tmp_path: Path) -> None:
    x = draw()
    result = verify(write_mean(tmp_path, x, mean=x.mean() + np.float32(0.5)))
    assert result.output_errors == {"y": 0.0, "mean": pytest.approx(0.5, abs=ROUNDING)}


def test_rows_may_be_any_axis_of_an_output(tmp_path: Path) -> None:
    x = draw(5)
    save_gates(tmp_path / "model.onnx")
    y = np.stack([x, -x])
    write_examples(tmp_path, {"x": x}, {"y": y})
    assert verify(tmp_path).output_errors == {"y": 0.0}
    y[1, 4] += 0.5
    write_examples(tmp_path, {"x": x}, {"y": y})
    assert not verify(tmp_path).holds


def test_an_answer_that_is_not_a_number_does_not_hold(tmp_path: Path) -> None:
    x = draw()
    x[3, 1] = np.nan
    result = verify(write_mean(tmp_path, x))
    assert math.isnan(result.largest_error)
    assert not result.holds


@pytest.mark.parametrize("position", [0, 1])
def test_a_nan_anywhere_is_the_largest_error(position: int) -> None:
    errors = [0.5, 0.25]
    errors[position] = math.nan
    result = StoredVerification((1,), dict(zip("ab", errors, strict=True)), 1.0)
    assert math.isnan(result.largest_error)
    assert not result.holds


@pytest.mark.parametrize("call", [0, 9, 20])
def test_an_answer_that_is_wrong_once_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """As by a race between threads. Of 4 repeats the first three batches are 12 calls."""
    run = Session.run
    sizes: list[int] = []

    def wrong_once(session: Session, /, **inputs: Any) -> dict[str, NDArray[Any]]:
        answers = run(session, **inputs)
        sizes.append(len(inputs["x"]))
        if len(sizes) == call + 1:
            answers["y"] = answers["y"] + 1
        return answers

    monkeypatch.setattr(Session, "run", wrong_once)
    result = verify(write_mean(tmp_path, draw()), repeats=4)
    # A batch of no rows has nothing to be wrong in.
    assert result.holds == (call == 0)
    # The last is of all rows, for the mean.
    assert sizes == [size for size in (0, 1, 2, 7, 33, 700, 40) for _ in range(4)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_found_by_name(folder: Path, name: str, position: float) -> None:
    flip_bit(folder / name, position)
    with pytest.raises(ModelError, match=re.escape(f"{folder / name} is damaged: its SHA-256")):
        verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=re.escape(f"{folder / name} is missing")):
        verify(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "model_info.json is damaged: Expecting"),
        ("[]", "model_info.json is not what an export writes."),
        ('{"files": 3}', "model_info.json is not what an export writes."),
        ("{}", "model_info.json is damaged: it lists the file 'model.onnx': None."),
        ('{"files": {"../a": "0"}}', "model_info.json is damaged: it lists the file '../a': '0'."),
        ('{"files": {}}', "model_info.json is damaged: its tolerance is None."),
        ('{"files": {}, "tolerance": -1}', "model_info.json is damaged: its tolerance is -1."),
    ],
)
def test_damaged_information_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "model_info.json").write_text(text)
    with pytest.raises(ModelError, match=re.escape(message)):
        verify(folder)


def test_without_information_nothing_is_verified(folder: Path) -> None:
    (folder / "model_info.json").unlink()
    with pytest.raises(ModelError, match=r"model_info\.json cannot be read: No such file"):
        verify(folder)


def test_examples_that_were_never_written_are_named(folder: Path) -> None:
    (folder / "examples.npz").unlink()
    sign(folder)
    with pytest.raises(ModelError, match=r"examples\.npz does not exist"):
        verify(folder)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04text"])
def test_examples_that_are_no_archive_are_refused(folder: Path, content: bytes) -> None:
    (folder / "examples.npz").write_bytes(content)
    sign(folder)
    with pytest.raises(ModelError, match=r"examples\.npz cannot be read as \.npz"):
        verify(folder)


Arrays = dict[str, NDArray[Any]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("input.x"), "must hold 'input.<name>' with the same number"),
        (lambda arrays: arrays.update({"input.x": np.zeros((0, DIM))}), "number of rows >= 1"),
        (lambda arrays: arrays.update({"input.z": np.zeros(3)}), "the same number of rows"),
        (lambda arrays: arrays.update(x=np.zeros(3)), "must hold 'input.<name>' with"),
        (lambda arrays: arrays.pop("output.output"), "'output.output' is missing, not ('batch'"),
        (lambda arrays: arrays.update({"output.z": np.zeros(3)}), "'output.z' is unknown"),
        (
            lambda arrays: arrays.update({"output.weights": arrays["output.weights"][:7]}),
            "'output.weights' is of shape (7, 5), not ('batch', 5)",
        ),
        (
            lambda arrays: arrays.update({"output.weights": arrays["output.weights"][:, :2]}),
            "'output.weights' is float32 (0, 2) where the model answers float32 (0, 5)",
        ),
        (
            lambda arrays: arrays.update({"output.penalty": np.zeros(2, np.float32)}),
            "'output.penalty' is float32 (2,) where the model answers float32 ()",
        ),
        (
            lambda arrays: arrays.update({"input.x": arrays["input.x"][:, 1:]}),
            f"is not of this model: `x` must have shape (batch, {DIM}), got (0, {DIM - 1}).",
        ),
        (
            lambda arrays: arrays.update({"input.z": arrays.pop("input.x")}),
            "is not of this model: `inputs` must be x, got z.",
        ),
    ],
)
def test_examples_of_another_model_are_refused(
    folder: Path, change: Callable[[Arrays], object], message: str
) -> None:
    path = folder / "examples.npz"
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    sign(folder)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        verify(folder)
    assert str(path) in str(caught.value)


def test_a_batch_that_the_model_cannot_take_is_said(tmp_path: Path) -> None:
    x = draw(5)
    path = save_single(tmp_path / "model.onnx")
    write_examples(tmp_path, {"x": x}, {"y": x})
    sign(tmp_path, smallest_batch=1)
    with pytest.raises(ModelError, match=re.escape(f"{path} fails with a batch of 5 rows: ")):
        verify(tmp_path)


def test_an_export_with_one_digest_only_is_read_too(folder: Path) -> None:
    path = folder / "model_info.json"
    info = json.loads(path.read_text())
    del info["files"]
    path.write_text(json.dumps(info))
    assert verify(folder).holds
    flip_bit(folder / "model.onnx", 0.5)
    with pytest.raises(ModelError, match=r"model\.onnx is damaged"):
        verify(folder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folder": 3}, TypeError, "`folder` must be a path, got int."),
        ({"num_threads": 0}, ValueError, "`num_threads` must be an integer >= 1, got 0."),
        ({"repeats": 0}, ValueError, "`repeats` must be an integer >= 1, got 0."),
        ({"tolerance": 0}, ValueError, "`tolerance` must be a number > 0, got 0."),
        ({"tolerance": math.nan}, ValueError, "`tolerance` must be a number > 0, got nan."),
        ({"tolerance": "a"}, ValueError, "`tolerance` must be a number > 0, got 'a'."),
    ],
)
def test_a_bad_argument_is_refused(
    exported: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"folder": exported, **options}
    with pytest.raises(error, match=re.escape(message)):
        verify(given.pop("folder"), **given)
