"""Lower a canonical model for another target, and verify it by the answers that were kept."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from moe_runtime.onnx._difference import stored_batch_sizes
from moe_runtime.onnx._files import staged
from moe_runtime.onnx._finish import Work, finish, verify_mixtures
from moe_runtime.onnx._folder import (
    CANONICAL_DATA_FILE,
    CANONICAL_FILE,
    EXAMPLES_FILE,
    ModelError,
    check_files,
    digests,
    read_examples,
    read_info,
)
from moe_runtime.onnx._info import versions
from moe_runtime.onnx._lower import check_target
from moe_runtime.onnx._trace import BATCH
from moe_runtime.onnx._verification import Change, Verification
from moe_runtime.onnx._verify import Case

# What `finish` writes anew.
WRITTEN = ("files", "sha256", "target", "tolerance", "verification")


def write_lowered(
    source: str | os.PathLike[str], folder: Path, *, target: str, tolerance: float | None
) -> Verification:
    """Write an export made from another one, or nothing."""
    info = _checked_info(Path(source))
    model = ir.load(Path(source) / CANONICAL_FILE)
    check_target(model, target)
    examples = Case(*read_examples(Path(source)))
    kept = info["verification"]
    with staged(folder) as stage:
        work = Work(
            target=target,
            tolerance=tolerance,
            info=_kept(info),
            mixture_errors=verify_mixtures(model, target),
            num_undecided=kept["num_undecided"],
            hardening={name: Change(*each) for name, each in kept["hardening"].items()},
            cases=_cases(examples, info),
            examples=examples,
        )
        return finish(stage, model, work)


def _checked_info(source: Path) -> dict[str, Any]:
    """Read what is known of an export, and check the files that are needed of it."""
    if not source.is_dir():
        msg = f"`source` must be the folder of an export, got {source}."
        raise NotADirectoryError(msg)
    info = read_info(source)
    listed = digests(info)
    if CANONICAL_FILE not in listed:
        msg = f"{source} has no {CANONICAL_FILE}: export with `canonical`=True to lower again."
        raise ModelError(msg)
    needed = (CANONICAL_FILE, CANONICAL_DATA_FILE, EXAMPLES_FILE)
    check_files(source, {name: listed[name] for name in needed if name in listed})
    return info


def _kept(info: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in info.items() if name not in WRITTEN}
    return kept | {"versions": versions()}


def _cases(examples: Case, info: dict[str, Any]) -> list[Case]:
    """Make batches of all sizes of the example rows, in turn; for outputs that know each row's."""
    num_rows = next(iter(examples.inputs.values())).shape[0]
    axes = {
        output["name"]: output["shape"].index(BATCH)
        for output in info["outputs"]
        if BATCH in output["shape"] and output["name"] not in info.get("batch_dependent", ())
    }
    cases = [examples]
    for size in stored_batch_sizes(info) if axes else ():
        rows = np.arange(size) % num_rows
        inputs = {name: array[rows] for name, array in examples.inputs.items()}
        answers = {name: examples.answers[name].take(rows, axis) for name, axis in axes.items()}
        cases.append(Case(inputs, answers))
    return cases
