"""Numbers are kept exactly, and a resumed run continues the file that an interrupted one left."""

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_runtime import CsvWriter, TensorBoardWriter

ALL = {step: {"a/b": step / 3, "dead, or not": step} for step in range(0, 60, 10)}


def read(path: Path) -> dict[int, dict[str, float]]:
    with path.open(newline="") as file:
        return {
            int(row.pop("step")): {name: float(cell) for name, cell in row.items()}
            for row in csv.DictReader(file)
        }


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    writer = CsvWriter(tmp_path / "a.csv")
    for step, numbers in ALL.items():
        writer.write(step, numbers)
        assert list(read(tmp_path / "a.csv")) == [each for each in ALL if each <= step]
    assert read(tmp_path / "a.csv") == ALL


def test_numbers_of_numpy_come_back_exactly_too(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {
        "a": np.float64(1 / 3),
        "b": np.float32(0.1),
        "c": np.int64(2**60 + 1),
    }
    CsvWriter(tmp_path / "a.csv").write(0, numbers)
    (line,) = (tmp_path / "a.csv").read_text().splitlines()[1:]
    _, *cells = line.split(",")
    assert [type(each)(cell) for each, cell in zip(numbers.values(), cells, strict=True)] == list(
        numbers.values()
    )


@pytest.mark.parametrize("resumed", range(0, 60, 10))
def test_a_run_killed_at_any_byte_and_resumed_leaves_the_file_of_a_whole_one(
    tmp_path: Path, resumed: int
) -> None:
    path = tmp_path / "a.csv"
    whole = CsvWriter(path)
    for step, numbers in ALL.items():
        whole.write(step, numbers)
    content = path.read_bytes()
    begin = content.index(b"\n%d," % resumed) + 1
    for killed in range(begin, len(content) + 1):
        path.write_bytes(content[:killed])
        writer = CsvWriter(path)
        for step, numbers in ALL.items():
            if step >= resumed:
                writer.write(step, numbers)
        assert path.read_bytes() == content


def test_a_file_of_an_unfinished_header_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"step,a/")
    CsvWriter(path).write(0, {"a/b": 1})
    assert path.read_bytes() == b"step,a/b\n0,1\n"


@pytest.mark.parametrize(
    "content",
    [
        "epoch,loss\n",
        "step,a\n1,2,3\n",
        "step,a\nx,2\n",
        "step,a\n2,1\n1,1\n",
        "\n",
        "\xff\n",
        '{"results": [1, 2, 3]}',
    ],
    ids=["header", "cells", "step", "order", "empty", "binary", "one line"],
)
def test_a_file_that_is_no_such_table_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"table of increasing steps, got line . of .*{path.name}"):
        CsvWriter(path)
    assert path.read_bytes() == content.encode("latin-1")


def test_other_names_are_refused_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    CsvWriter(path).write(1, {"a": 1, "b": 2})
    before = path.read_bytes()
    message = f"`numbers` must have the names in {path}, got ['c'] more and ['b'] less."
    with pytest.raises(ValueError, match=re.escape(message)):
        CsvWriter(path).write(0, {"a": 1, "c": 2})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("step", "numbers", "error", "message"),
    [
        (-1, {"a": 1}, ValueError, "`step` must be an integer >= 0, got -1."),
        (0, {"a": "1"}, TypeError, "`numbers['a']` must be a number, got '1'."),
    ],
)
def test_a_bad_argument_is_refused(
    tmp_path: Path, step: int, numbers: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        CsvWriter(tmp_path / "a.csv").write(step, numbers)
    assert not (tmp_path / "a.csv").exists()


def test_without_tensorboard_its_writer_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = (
        "TensorBoardWriter needs the package 'tensorboard', which is not installed: "
        'pip install "moe-runtime[tensorboard]"'
    )
    with pytest.raises(ModuleNotFoundError, match=re.escape(message)):
        TensorBoardWriter(tmp_path)
    assert not list(tmp_path.iterdir())


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written_and_written_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoardWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"moe/dead_experts": step, "moe/load/0": 0.5})
    with TensorBoardWriter(tmp_path, resume_step=20) as writer:
        writer.write(20, {"moe/dead_experts": 7, "moe/load/0": 0.25})
    assert scalars(tmp_path) == {
        "moe/dead_experts": [(10, 10), (20, 7)],
        "moe/load/0": [(10, 0.5), (20, 0.25)],
    }
