"""Models are timed on the same rows, in turns, and what was measured survives an interruption."""

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _command import refusal, run_command
from _exported import save_mean, save_scaled, save_single
from _readable import check_readable, words_of
from _reference import DIM
from numpy.typing import NDArray

from moe_runtime._cli import _latency
from moe_runtime._cli._latency import Timing, draw_rows, measure, open_models, summarise, take
from moe_runtime._cli._latency_plot import plot_latency
from moe_runtime.onnx import Session, TensorSpec

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

Capture = pytest.CaptureFixture[str]
QUICK = ["--batch-sizes", "3,1", "--threads", "1", "--seconds", "0.01"]
FEWEST = 7


def test_bench_prints_and_writes_what_it_measured(
    capsys: Capture, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    done = run_command(capsys, "bench", exported, *QUICK, "--json", path)
    assert done.code == 0
    assert done.err == "timing 1 rows (1 of 2)\ntiming 3 rows (2 of 2)\n"
    document = json.loads(path.read_text())
    assert (document["provider"], document["threads"]) == ("cpu", 1)
    small, large = document["timings"]
    assert (small["batch_size"], large["batch_size"]) == (1, 3)
    assert large["rounds"] >= FEWEST
    assert large["rows_per_second"] == pytest.approx(3e3 / large["median_ms"])
    header, first, second, wrote = done.out.splitlines()
    assert header.split()[:3] == ["model", "rows", "median"]
    assert "first" not in header
    assert [line.split()[:2] for line in (first, second)] == [
        [str(exported), "1"],
        [str(exported), "3"],
    ]
    assert wrote == f"wrote {path}"


def test_several_models_are_compared_with_the_first(
    capsys: Capture, exported: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    other = exported / "model.onnx"
    arguments = ["--against", other, exported, "--json", path, *QUICK]
    done = run_command(capsys, "bench", exported, *arguments)
    assert done.code == 0
    timings = json.loads(path.read_text())["timings"]
    names = [str(exported), str(other), f"{exported} (2)"]
    assert [each["model"] for each in timings] == names * 2
    assert [each["ratio_to_first"] for each in timings[::3]] == [1.0, 1.0]
    assert done.out.splitlines()[1].endswith("1.00x")
    assert "below 1x is faster" in done.out


def test_a_ratio_is_the_median_of_rounds_so_that_noise_of_both_cancels() -> None:
    # The machine is 10 times slower in two rounds, for both models.
    timing = Timing("b", 4, [2.0, 20.0, 2.0, 20.0, 2.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    found = summarise(timing)
    assert found["ratio_to_first"] == 2.0
    assert found["median_ms"] == 2.0
    assert found["quartiles_ms"] == [2.0, 20.0]
    assert found["rows_per_second"] == 2000.0


def test_models_take_turns_and_none_is_always_first(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    run = Session.run

    def noted(session: Session, /, **inputs: Any) -> dict[str, NDArray[Any]]:
        order.append(id(session))
        return run(session, **inputs)

    monkeypatch.setattr(Session, "run", noted)
    monkeypatch.setattr(_latency, "BLOCK", 1e-9)  # one call a block
    models = open_models([str(exported)] * 2, provider="cpu", num_threads=1)
    timings: list[Timing] = []
    measure(timings, models, {"x": np.zeros((2, DIM), np.float32)}, [5], 1e-9)
    one, two = map(id, models.values())
    # After 3 calls of each to warm up.
    rounds = list(zip(order[6::2], order[7::2], strict=True))
    assert rounds == [(two, one), (one, two)] * (FEWEST // 2) + [(two, one)]
    assert [len(each.milliseconds) for each in timings] == [FEWEST, FEWEST]


def test_an_interruption_leaves_what_was_measured(
    capsys: Capture, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = Session.run, count()

    def interrupted(session: Session, /, **inputs: Any) -> dict[str, NDArray[Any]]:
        # One to see that the rows fit; 3 calls to warm up and 7 rounds of the first size; then
        # as many to warm up and 2 rounds of the second.
        if next(calls) == 1 + 10 + 5:
            raise KeyboardInterrupt
        return run(session, **inputs)

    monkeypatch.setattr(Session, "run", interrupted)
    monkeypatch.setattr(_latency, "BLOCK", 1e-9)
    path = tmp_path / "out.json"
    arguments = [*QUICK, "--seconds", "1e-9", "--json", path]
    done = run_command(capsys, "bench", exported, *arguments)
    assert done.code == 130
    assert done.err.endswith("interrupted: this is what was measured\n")
    assert [each["rounds"] for each in json.loads(path.read_text())["timings"]] == [FEWEST, 2]


def test_an_interruption_before_anything_is_measured_writes_nothing(
    capsys: Capture, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_latency, "_repeats", interrupted)
    path = tmp_path / "out.json"
    done = run_command(capsys, "bench", exported, *QUICK, "--json", path)
    assert (done.code, done.out) == (130, "")
    assert not path.exists()


def test_rows_are_drawn_where_there_are_no_examples(capsys: Capture, tmp_path: Path) -> None:
    path = save_scaled(tmp_path / "a.onnx")
    done = run_command(capsys, "bench", path, *QUICK)
    assert done.code == 0
    assert f"{path} has no examples.npz: rows are drawn at random\n" in done.err


def test_drawn_rows_fit_every_dtype_and_shape() -> None:
    specs = [
        TensorSpec("a", np.dtype("float16"), ("batch", "length", 3)),
        TensorSpec("b", np.dtype("bool"), ("batch",)),
        TensorSpec("c", np.dtype("uint8"), ("batch", None)),
    ]
    rows = draw_rows(specs)
    free = _latency.FREE_AXIS
    assert [each.shape[1:] for each in rows.values()] == [(free, 3), (), (free,)]
    assert [each.dtype for each in rows.values()] == [value.dtype for value in specs]
    assert {int(each) for each in np.unique(rows["c"])} == {0, 1}


def test_a_batch_goes_round_and_round_the_rows() -> None:
    rows = {"x": np.arange(3), "y": np.arange(3) * 10}
    batch = take(rows, 7)
    assert batch["x"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch["y"].tolist() == [0, 10, 20, 0, 10, 20, 0]


def test_models_with_other_inputs_are_refused_before_timing(
    capsys: Capture, exported: Path, tmp_path: Path
) -> None:
    other = save_mean(tmp_path / "mean.onnx")
    message = f"{other} does not take the rows of {exported}: `x` must have shape (batch, 3)"
    assert message in refusal(capsys, "bench", exported, "--against", other)


def test_a_model_that_fails_while_it_is_timed_is_said_in_one_line(
    capsys: Capture, tmp_path: Path
) -> None:
    done = run_command(capsys, "bench", save_single(tmp_path / "a.onnx"), *QUICK)
    assert done.code == 2
    *_, progress, reason = done.err.splitlines()
    assert progress == "timing 3 rows (2 of 2)"
    assert reason.startswith("error: ")
    assert "Squeeze" in reason


def test_files_that_could_not_be_written_are_refused_before_timing(
    capsys: Capture, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent" / "out.json"
    message = f"{absent} must be in a folder that exists."
    assert refusal(capsys, "bench", exported, "--json", absent) == message
    message = f"{tmp_path} must be a file to write, and is a folder."
    assert refusal(capsys, "bench", exported, "--json", tmp_path) == message
    message = "`--plot` must end in one of .png, .svg, .pdf, got out.txt."
    assert refusal(capsys, "bench", exported, "--plot", "out.txt") == message
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given = refusal(capsys, "bench", exported, "--plot", "out.png")
    assert given.endswith('not installed: pip install "moe-runtime[plots]"')


def summaries_of(names: list[str], sizes: list[int]) -> list[dict[str, Any]]:
    return [
        {"model": name, "batch_size": size, "median_ms": ms, "quartiles_ms": [0.9 * ms, 1.3 * ms]}
        for index, name in enumerate(names)
        for size in sizes
        for ms in [0.03 * (index + 1) + 0.002 * size]
    ]


@pytest.mark.parametrize("sizes", [[64], [1, 8], [1, 8, 64, 512, 4096]], ids=str)
@pytest.mark.parametrize("names", [["one"], ["exports/a", "exports/b", "dense.onnx"]], ids=len)
def test_a_picture_can_be_read_and_shows_the_numbers(names: list[str], sizes: list[int]) -> None:
    pytest.importorskip("matplotlib")
    summaries = summaries_of(names, sizes)
    figure = plot_latency(summaries, {"provider": "cpu", "threads": 2})
    check_readable(figure)
    words = [word for word, _ in words_of(figure)]
    assert {*names, *map(str, sizes), "CPU, threads: 2", "rows in the batch"} <= set(words)
    drawn = [list(box[0].get_ydata()) for box in figure.axes[0].containers]
    medians = [each["median_ms"] for each in summaries]
    assert [ms for line in drawn for ms in line] == medians


def test_bench_draws_the_picture(capsys: Capture, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "out.png"
    done = run_command(capsys, "bench", exported, *QUICK, "--plot", path)
    assert done.code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert done.out.endswith(f"wrote {path}\n")
