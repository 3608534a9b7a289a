"""The command verifies, inspects and lowers, and says in one line what it was given wrongly."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _command import refusal, run_command
from _exported import flip_bit, save_graph, sign
from _reference import DIM

import moe_runtime.onnx
from moe_runtime import _cli
from moe_runtime._cli._table import format_table
from moe_runtime.onnx import Verification

for extra in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(extra, reason='needs the extra: pip install "moe-runtime[onnx]"')

COMMANDS = ["export", "lower", "verify", "inspect", "bench"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_distribution_installs_the_command() -> None:
    (found,) = entry_points(group="console_scripts", name="moe-runtime")
    assert found.load() is _cli.main


def test_help_lists_the_commands(capsys: Capture) -> None:
    done = run_command(capsys, "--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f"\n    {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_shows_it(capsys: Capture, command: str) -> None:
    done = run_command(capsys, command, "--help")
    assert done.code == 0
    assert f"usage: moe-runtime {command} " in done.out
    assert f"moe-runtime {command} " in done.out.partition("example")[2]
    # Every option has its text, in its line or the next.
    lines = done.out.partition("options:\n")[2].split("\n\n")[0].split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("  -"):
            assert "  " in line.strip() or following.startswith("       "), line


def test_the_version_is_that_of_the_package(capsys: Capture) -> None:
    assert run_command(capsys, "--version").out.strip() == moe_runtime.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see moe-runtime --help)"),
        (["sing"], "argument COMMAND: invalid choice: 'sing'"),
        (["verify"], "the following arguments are required: FOLDER (see moe-runtime verify --hel"),
        (["verify", "a", "--threads", "0"], "--threads: must be an integer >= 1, got '0'"),
        (["verify", "a", "--repeats", "x"], "--repeats: must be an integer >= 1, got 'x'"),
        (["verify", "a", "--tolerance", "nan"], "must be a finite number > 0, got 'nan'"),
        (["verify", "a", "--tolerance", "-1"], "must be a finite number > 0, got '-1'"),
        (["verify", "a", "--tolerance", "x"], "must be a finite number > 0, got 'x'"),
        (["lower", "a", "b"], "the following arguments are required: --target"),
        (["lower", "a", "b", "--target", "c"], "--target: invalid choice: 'c'"),
        (
            ["export", "a", "b", "--outputs", "y,,z"],
            "must be names separated by commas, got",
        ),
        (["bench", "a", "--batch-sizes", "1,0"], "integers >= 1 separated by commas, got '1,0'"),
        (["bench", "a", "--provider", "gpu"], "--provider: invalid choice: 'gpu'"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(
    capsys: Capture, arguments: list[str], message: str
) -> None:
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize("command", ["verify", "inspect", "bench"])
def test_a_missing_folder_is_named(capsys: Capture, tmp_path: Path, command: str) -> None:
    assert str(tmp_path / "absent") in refusal(capsys, command, tmp_path / "absent")


def test_a_traceback_is_shown_on_demand(capsys: Capture, tmp_path: Path) -> None:
    with pytest.raises(moe_runtime.onnx.ModelError, match="absent does not exist"):
        run_command(capsys, "--traceback", "inspect", tmp_path / "absent")


def test_verify_says_that_an_export_holds(capsys: Capture, exported: Path) -> None:
    done = run_command(capsys, "verify", exported, "--threads", 1, "--repeats", 1)
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["output", "output", "penalty", "weights"]
    assert lines[4].endswith(": within 0.0001")


def test_verify_fails_where_answers_differ(capsys: Capture, exported: Path) -> None:
    done = run_command(capsys, "verify", exported, "--tolerance", "1e-12")
    assert done.code == 1
    assert done.out.endswith(": NOT within 1e-12\n")


def test_verify_refuses_a_damaged_file(capsys: Capture, folder: Path) -> None:
    flip_bit(folder / "examples.npz", 0.5)
    assert f"{folder / 'examples.npz'} is damaged" in refusal(capsys, "verify", folder)


def test_inspect_gives_machines_all_facts(capsys: Capture, exported: Path) -> None:
    facts = json.loads(run_command(capsys, "inspect", exported, "--json").out)
    info = json.loads((exported / "model_info.json").read_text())
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", DIM]}]
    assert [value["name"] for value in facts["outputs"]] == ["output", "penalty", "weights"]
    assert facts["opset"]["ai.onnx"] == info["opset"]
    # Two layers of five experts; and all their numbers, which the router's add to.
    assert facts["operators"]["Gemm"] >= 10
    (floats,) = [each for each in facts["weights"] if each["dtype"] == "float32"]
    assert floats["numbers"] >= 5 * (DIM * 7 + 7 + 7 * 4 + 4)
    assert floats["mb"] == floats["numbers"] * 4 / 1e6
    assert facts["files_mb"] == {"model.onnx": (exported / "model.onnx").stat().st_size / 1e6}
    for name in ("hard", "mixtures", "tolerance", "verification", "versions"):
        assert facts[name] == info[name]


def test_inspect_gives_people_a_table(capsys: Capture, folder: Path) -> None:
    mixture = {"name": "head", "gates": ["CometRouter"], "num_experts": 5, "k": [2]}
    sign(folder, target="scan", mixtures=[mixture])
    text = run_command(capsys, "inspect", folder).out
    assert "hard routing\ntarget scan\n" in text
    assert "mixture  gates        experts  k\nhead     CometRouter        5  2\n" in text
    assert f"input  dtype    shape\nx      float32  (batch, {DIM})\n" in text
    assert "\ntolerance 0.0001\n" in text
    more = {"dtype": "float16", "layer_sizes": [[6, 7], [7, 4]]}
    sign(folder, mixtures=[mixture | more])
    text = run_command(capsys, "inspect", folder).out
    assert re.search("^head +CometRouter +5 +2 +float16 +6 x 7, 7 x 4$", text, re.MULTILINE)


def test_inspect_takes_any_file_and_counts_what_loops_hold(capsys: Capture, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    spec = {"x": ("FLOAT", ["batch", 3])}
    path = save_graph(tmp_path / "a.onnx", [("Neg", ["x"], "y")], spec, {"y": spec["x"]})
    model = onnx.load(path)
    value = onnx.helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, [3])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [3])
    nodes = [onnx.helper.make_node("Neg", ["row"], ["out"])]
    body = onnx.helper.make_graph(nodes, "body", [value], [out])
    scan = onnx.helper.make_node("Scan", ["x"], ["z"], body=body, num_scan_inputs=1)
    model.graph.node.append(scan)
    model.graph.node.append(onnx.helper.make_node("MoE", ["x"], ["w"], domain="com.microsoft"))
    onnx.save(model, path)
    facts = json.loads(run_command(capsys, "inspect", path, "--json").out)
    assert facts["operators"] == {"Neg": 2, "Scan": 1, "com.microsoft.MoE": 1}
    assert "hard" not in facts
    assert run_command(capsys, "inspect", path).code == 0


def test_inspect_says_what_a_file_does_not_tell(capsys: Capture, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    given = ("FLOAT", [None, "length", 3])
    path = save_graph(tmp_path / "a.onnx", [("Neg", ["x"], "y")], {"x": given}, {"y": given})
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["x"], ["several"]))
    several = onnx.helper.make_tensor_sequence_value_info("several", onnx.TensorProto.FLOAT, None)
    untyped = onnx.helper.make_empty_tensor_value_info("untyped")
    model.graph.output.extend([several, untyped])
    onnx.save(model, path)
    facts = json.loads(run_command(capsys, "inspect", path, "--json").out)
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["?", "length", 3]}]
    found = [(value["dtype"], value["shape"]) for value in facts["outputs"]]
    assert found == [("float32", None), ("sequence", None), ("?", None)]
    text = run_command(capsys, "inspect", path).out
    assert "x      float32  (?, length, 3)\n" in text
    assert "several  sequence  ?\n" in text


@pytest.mark.parametrize("content", [b"", b"no protobuf", b"\x08\x08"])
def test_inspect_refuses_what_is_no_model(capsys: Capture, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    assert f"{path} is damaged or not ONNX" in refusal(capsys, "inspect", path)


def test_inspect_refuses_information_that_is_incomplete(capsys: Capture, folder: Path) -> None:
    sign(folder, verification={})
    message = "model_info.json is not what an export writes: KeyError('mixture_errors')"
    assert message in refusal(capsys, "inspect", folder)


def test_lower_passes_on_what_it_was_asked_for(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def lower(source: str, folder: str, **options: Any) -> Any:
        calls.append((source, folder, options))
        found = Verification((1, 7), {"y": 0.00123}, (0.25,), 3)
        change = SimpleNamespace(relative=0.125)
        return SimpleNamespace(**{**vars(found), "hardening": {"y": change}})

    monkeypatch.setattr(moe_runtime.onnx, "lower", lower, raising=False)
    done = run_command(capsys, "lower", "a", "b", "--target", "int8", "--tolerance", "0.5")
    assert calls == [("a", "b", {"target": "int8", "tolerance": 0.5})]
    assert done.code == 0
    assert "\ny                0.0012\nmixture 0 alone    0.25\n" in done.out
    assert "in batches of 1, 7 rows" in done.out
    assert "changes their experts: 3" in done.out
    assert "y 12.50%" in done.out
    run_command(capsys, "lower", "a", "b", "--target", "scan")
    assert calls[1][2] == {"target": "scan", "tolerance": None}


def test_an_interrupted_command_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moe_runtime.onnx, "verify", interrupted)
    assert run_command(capsys, "verify", "a") == (130, "", "interrupted\n")


@pytest.mark.parametrize("is_buffered", [True, False])
def test_a_command_whose_reader_has_left_does_not_seem_to_have_succeeded(
    exported: Path, *, is_buffered: bool
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    options = [] if is_buffered else ["-u"]
    code = "import sys; from moe_runtime._cli import main; sys.exit(main())"
    command = [sys.executable, *options, "-c", code, "inspect", str(exported)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    # What a shell says of one that SIGPIPE has ended.
    assert (done.returncode, done.stderr) == (141, "")


def test_a_table_fits_its_cells() -> None:
    text = format_table(("name", "size"), [("a", 1), ("longer", 1234567)])
    assert text == "name       size\na             1\nlonger  1234567"
