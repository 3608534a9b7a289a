import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from _tiny import TINY, TINY_OPTIONS, Run, command
from rich.console import Console

from moe_benchmarks._files import remove_leftovers
from moe_benchmarks._gates import TRAINED_GATES, build_model
from moe_benchmarks._quickstart import Run as TrainingRun
from moe_benchmarks._quickstart import _export
from moe_benchmarks._two_digits import load_two_digits


def numbers(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def without_times(report: str) -> str:
    """Cut what was timed from a report: the latency figure and the sentence on speed."""
    report = re.sub(
        r"<figure><svg(?:(?!</figure>).)*?rows a call.*?</figure>", "", report, flags=re.DOTALL
    )
    return re.sub(r"<p>On \d+ rows the selected experts.*?</p>", "", report, flags=re.DOTALL)


class Outside(HTMLParser):
    """Collects what a browser would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "svg"
        for name, value in attrs:
            loads = name in {"src", "href", "xlink:href", "srcset", "data"}
            if loads and value and not value.startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")


def test_the_report_is_whole_and_needs_nothing_else(finished: Path) -> None:
    report = (finished / "report.html").read_text()
    outside = Outside()
    outside.feed(report)
    assert outside.found == []
    assert outside.images == 4 + 2 + 2, "figures, heat maps, trees"
    assert "@import" not in report
    for gate in ("Hash", "Top-k", "DSelect-k", "COMET", "COMET+"):
        assert f"<td>{gate}</td>" in report
    ids = re.findall(r'id="([^"]*)"', report)
    assert len(ids) == len(set(ids)), "figures must not share ids on one page"


def test_the_same_seed_gives_the_same_numbers(
    finished: Path, moe_bench: Run, tmp_path: Path
) -> None:
    again = moe_bench("quickstart", f"--out={tmp_path}", *TINY_OPTIONS)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path) == numbers(finished)
    other = moe_bench("quickstart", f"--out={tmp_path / 'other'}", "--seed=7", *TINY_OPTIONS)
    assert other.returncode == 0, other.stderr
    assert numbers(tmp_path / "other") != numbers(finished)


def test_a_second_run_changes_nothing_but_the_report_file(
    finished: Path, moe_bench: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    assert moe_bench("quickstart", f"--out={folder}", *TINY_OPTIONS).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before
    assert (folder / "report.html").read_text() == (finished / "report.html").read_text()


def test_killing_it_ten_times_ends_with_the_same_report(finished: Path, tmp_path: Path) -> None:
    options = ["quickstart", f"--out={tmp_path}", *TINY_OPTIONS]
    start = time.monotonic()
    subprocess.run(command(*options, "--help"), capture_output=True, check=True)
    import_seconds = time.monotonic() - start
    kills = 0
    while kills < 10:
        process = subprocess.Popen(
            command(*options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Later in every round, so that all stages are hit however fast the machine is.
        time.sleep(import_seconds * (0.9 + 0.15 * kills))
        process.kill()
        process.wait()
        kills += 1
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == numbers(finished)
    reports = [
        without_times((folder / "report.html").read_text()) for folder in (tmp_path, finished)
    ]
    assert reports[0] == reports[1]
    assert not list(tmp_path.rglob(".*.tmp")), "half-written files were left"


def test_leftovers_of_every_kind_are_removed_and_nothing_else(tmp_path: Path) -> None:
    stage = tmp_path / "model" / ".export.abc.tmp"
    stage.mkdir(parents=True)
    (stage / ".model.onnx.tmp").write_text("half")
    (tmp_path / ".results.json.7.tmp").write_text("half")
    (tmp_path / "model" / "model.onnx").write_text("whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["model", "model.onnx"]


def test_ctrl_c_says_how_to_continue(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("quickstart", f"--out={tmp_path}", *TINY_OPTIONS, "--epochs=500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whatever was started in the background of a shell has Ctrl-C ignored, and hands that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    checkpoint = tmp_path / "runs" / "hash-seed0" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "The same command continues it" in output
    assert "Traceback" not in error
    assert checkpoint.exists()


def test_the_served_model_answers_alike_in_a_python_without_torch(
    finished: Path, tmp_path: Path
) -> None:
    data = load_two_digits(num_train=600, num_validation=200, num_test=1000, seed=0)
    model = finished / "model" / "model.onnx"
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {"pixels": data.test.pixels.numpy()}
    if len(session.get_inputs()) == 2:
        feeds["ids"] = data.test.ids.numpy()
    arrays: dict[str, Any] = feeds
    np.savez(tmp_path / "inputs.npz", **arrays)
    script = """
import sys
import numpy as np, onnxruntime as ort
session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = dict(np.load(sys.argv[2]))
for size in (0, 1, 7, 1000):
    feeds = {name: value[:size] for name, value in inputs.items()}
    np.savez(f"{sys.argv[3]}/{size}.npz", *session.run(None, feeds))
assert "torch" not in sys.modules
"""
    arguments = [str(model), str(tmp_path / "inputs.npz"), str(tmp_path)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    whole = session.run(None, feeds)
    for size in (0, 1, 7, 1000):
        answers = np.load(tmp_path / f"{size}.npz")
        for name, expected in zip(answers.files, whole, strict=True):
            assert answers[name].shape == (size, 10)
            np.testing.assert_allclose(answers[name], expected[:size], atol=1e-4)


def test_the_served_model_has_standard_operators_only(finished: Path) -> None:
    model = onnx.load(finished / "model" / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    info = json.loads((finished / "model" / "model_info.json").read_text())
    assert max(info["verification"]["output_errors"].values()) <= 1e-4


def test_a_gate_that_routes_by_ids_is_served_with_ids(tmp_path: Path) -> None:
    data = load_two_digits(num_train=100, num_validation=600, num_test=100, seed=0)
    mean = data.train.pixels.mean(0)
    model = build_model(TRAINED_GATES[0], TINY, seed=0, mean=mean).eval()
    _export(TrainingRun(TRAINED_GATES[0], 0), model, tmp_path, data, Console(quiet=True))
    session = ort.InferenceSession(tmp_path / "model" / "model.onnx")
    pixels, ids = data.test.pixels, data.test.ids
    answers = session.run(None, {"pixels": pixels.numpy(), "ids": ids.numpy()})
    with torch.no_grad():
        expected = model(pixels, ids).logits
    for answer, wanted in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "settings.json").write_text("{"), "settings.json is damaged"),
        (
            lambda out: next(out.rglob("comet-seed0/result.json")).write_text("[1,"),
            "result.json is damaged",
        ),
        (
            lambda out: [
                (out / "runs/top-k-seed0/result.json").unlink(),
                (out / "runs/top-k-seed0/checkpoint.safetensors").write_bytes(b"\x08" * 40),
            ],
            "checkpoint.safetensors is damaged",
        ),
        (
            lambda out: (out / "runs/hash-seed0/checkpoint.safetensors").write_bytes(b"\x08" * 9),
            "checkpoint.safetensors is damaged",
        ),
        (lambda out: next(out.rglob("comet-seed0/result.json")).write_text("{}"), "it lacks"),
        (lambda out: (out / "latency.json").write_text("{}"), "latency.json is damaged"),
        (lambda out: (out / "export.json").write_text("[]"), "export.json is damaged"),
    ],
    ids=["settings", "result", "unfinished", "finished", "keys", "latency", "export"],
)
def test_damaged_files_are_named(
    finished: Path, moe_bench: Run, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    damage(folder)
    done = moe_bench("quickstart", f"--out={folder}", *TINY_OPTIONS)
    assert done.returncode == 2
    assert message in done.stderr
    assert "run again" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_deleted_is_made_again(finished: Path, moe_bench: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    for checkpoint in folder.rglob("checkpoint.safetensors"):
        checkpoint.unlink()
    shutil.rmtree(folder / "model")
    done = moe_bench("quickstart", f"--out={folder}", *TINY_OPTIONS)
    assert done.returncode == 0, done.stderr
    assert numbers(folder) == numbers(finished)
    assert len(list(folder.rglob("checkpoint.safetensors"))) == len(TRAINED_GATES)
    assert (folder / "model" / "model.onnx").exists()


def test_one_epoch_is_enough(moe_bench: Run, tmp_path: Path) -> None:
    options = [option for option in TINY_OPTIONS if "epochs" not in option and "rows" not in option]
    done = moe_bench("quickstart", f"--out={tmp_path}", *options, "--epochs=1")
    assert done.returncode == 0, done.stderr


def test_somebody_elses_folder_is_refused(moe_bench: Run, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    done = moe_bench("quickstart", f"--out={tmp_path}", *TINY_OPTIONS)
    assert done.returncode == 2
    assert "`--out` must be a new or empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"


def test_other_settings_are_not_mixed_into_a_folder(finished: Path, moe_bench: Run) -> None:
    done = moe_bench("quickstart", f"--out={finished}", *TINY_OPTIONS, "--epochs=4")
    assert done.returncode == 2
    assert "epochs is 3 there and 4 here" in done.stderr
    assert "--out" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k=17"], "`k` must be in [1, num_experts=16], got 17"),
        (["--epochs=0"], "`epochs` must be >= 1, got 0"),
        (["--num-test=5"], "`num_test` must be >= 100, got 5"),
    ],
)
def test_bad_options_name_the_range_and_the_value(
    moe_bench: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    done = moe_bench("quickstart", f"--out={tmp_path / 'out'}", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(moe_bench: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    done = moe_bench("quickstart", f"--out={path}", *TINY_OPTIONS)
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == "mine"
