"""Run an exported model in OpenVINO, a runtime of other people, and compare with ONNX Runtime.

    python check_openvino.py FOLDER

FOLDER is what export_examples.py has written. Leaves with status 1 where OpenVINO refuses a
model or a number of rows, or answers otherwise than rounding allows.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import openvino as ov
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
# Growing and shrinking, as a server sees them: shapes of an earlier request must not stay.
BATCH_SIZES = (0, 1, 2, 33, 700, 2, 0, 1)
# OpenVINO takes the CPU's fastest type otherwise, such as bfloat16.
CONFIG = {"INFERENCE_PRECISION_HINT": "f32"}
# float32: two layers of at most 64 terms each, added in another order.
TOLERANCE = 2e-6


def check_model(folder: Path, name: str) -> list[str]:
    """Compare all outputs for all numbers of rows; print the largest difference of each."""
    model = folder / "exported" / name / "model.onnx"
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    try:
        compiled = ov.Core().compile_model(model, "CPU", CONFIG)
    except RuntimeError as error:
        return [f"{name}: OpenVINO does not load it: {error}"]
    with np.load(folder / f"{name}.npz") as arrays:
        rows = dict(arrays)

    def reference(feeds: Arrays) -> Arrays:
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))

    def other(feeds: Arrays) -> Arrays:
        return {key.get_any_name(): value for key, value in compiled(feeds).items()}

    return _compare(name, rows, reference, other)


def _compare(
    name: str,
    rows: Arrays,
    reference: Callable[[Arrays], Arrays],
    other: Callable[[Arrays], Arrays],
) -> list[str]:
    problems: list[str] = []
    largest: dict[str, float] = {}
    for size in BATCH_SIZES:
        feeds = {key: array[:size] for key, array in rows.items()}
        try:
            answers = other(feeds)
        except RuntimeError as error:
            problems.append(f"{name}, {size} rows: OpenVINO refuses them: {error}")
            continue
        for key, wanted in reference(feeds).items():
            apart = _apart(answers[key], wanted)
            largest[key] = max(largest.get(key, 0.0), apart)
            if not apart <= TOLERANCE:
                problems.append(f"{name}, {size} rows: {key} differs by {apart:g}")
    for key, apart in largest.items():
        print(f"{name}: {key} differs by at most {apart:.2g}")
    return problems


def _apart(answer: NDArray[Any], wanted: NDArray[Any]) -> float:
    if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
        return float("inf")
    apart = np.abs(answer.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
    # A NaN would be lost in a maximum.
    return float("inf") if np.isnan(apart) else float(apart)


def show_limits(folder: Path, name: str) -> None:
    """Print where OpenVINO is known to answer otherwise, so that it is seen when it changes."""
    model = folder / "exported" / name / "model.onnx"
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(folder / f"{name}.npz") as arrays:
        rows = dict(arrays)
    default = ov.Core().compile_model(model, "CPU")
    wanted = session.run(["comet"], rows)[0]
    precision = default.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    apart = _apart(default(rows)["comet"], wanted)
    print(f"limit: without the hint this CPU takes {precision}: comet differs by {apart:.2g}")
    rows["ids"][0] = np.iinfo(np.int32).max
    try:
        ov.Core().compile_model(model, "CPU", CONFIG)(rows)
    except RuntimeError as error:
        print(f"limit: an id that no table has is refused: {error}")
    else:
        print("limit: an id that no table has is answered; ONNX Runtime refuses it")


def main() -> int:
    """Check all models."""
    print(
        f"OpenVINO {ov.get_version()}, ONNX Runtime {ort.__version__}, {CONFIG}, rows {BATCH_SIZES}"
    )
    folder = Path(sys.argv[1])
    names = ("gates", "soft_gates", "scanned_gates", "served", "types")
    problems = [problem for name in names for problem in check_model(folder, name)]
    show_limits(folder, "gates")
    for problem in problems:
        print("PROBLEM", problem)
    print("failed" if problems else "OpenVINO gives the same answers")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
