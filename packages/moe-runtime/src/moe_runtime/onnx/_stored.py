"""Verify an export where it is: without PyTorch, against the answers stored beside the model."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_runtime.onnx._difference import Difference, stored_batch_sizes
from moe_runtime.onnx._folder import (
    EXAMPLES_FILE,
    INFO_FILE,
    MODEL_FILE,
    Examples,
    ModelError,
    check_count,
    check_files,
    check_path,
    digests,
    read_examples,
    read_info,
)
from moe_runtime.onnx._provider import runtime_errors
from moe_runtime.onnx._session import Session, TensorSpec
from moe_runtime.onnx._targets import QUANTISED

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredVerification:
    """How far ONNX Runtime is from PyTorch's stored answers, and how far it may be."""

    batch_sizes: tuple[int, ...]
    # Largest difference of each output, absolute up to 1 and relative above; with 8-bit
    # weights the root mean square of the difference, relative to that of the answers.
    output_errors: dict[str, float]
    tolerance: float

    @property
    def largest_error(self) -> float:
        """The largest of all; NaN where an answer was not a number."""
        errors = list(self.output_errors.values())
        # `max` alone forgets a NaN that does not come first.
        return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)

    @property
    def holds(self) -> bool:
        """Whether every error is at most `tolerance`."""
        return self.largest_error <= self.tolerance


def verify(
    folder: str | os.PathLike[str],
    *,
    num_threads: int = 2,
    repeats: int = 3,
    tolerance: float | None = None,
) -> StoredVerification:
    """Compare an export with its stored PyTorch answers, on this machine and without PyTorch.

    Every file must be what was written, to the bit. Then ONNX Runtime answers the example
    rows in batches of none to hundreds of rows; outputs that depend on their whole batch are
    compared for all of the rows together.

    Parameters
    ----------
    folder
        What `export` has written.
    num_threads, repeats
        A race between threads shows only sometimes: with more than one thread, and when
        asked more than once.
    tolerance
        Largest error that is accepted, instead of the one of the export.

    Returns
    -------
    StoredVerification
        Its `holds` says whether the answers are within the tolerance, and is to be looked at.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or the examples are not of this model.
    TypeError, ValueError
        If an argument is not what it must be.
    ModuleNotFoundError
        If the ``onnx`` extra is not installed.
    """
    check_path("folder", folder)
    check_count("num_threads", num_threads)
    check_count("repeats", repeats)
    folder = Path(folder)
    info = read_info(folder)
    check_files(folder, digests(info))
    tolerance = _tolerance(folder, info, tolerance)
    session = Session(folder / MODEL_FILE, num_threads=num_threads)
    examples = read_examples(folder)
    axes = _row_axes(session, info)
    _check_outputs(folder, session, examples, axes)
    has_rows = any(axis is not None for axis in axes.values())
    sizes = stored_batch_sizes(info) if has_rows else ()
    measures: dict[str, Difference] = {}
    for inputs, wanted in _batches(examples, axes, sizes):
        for _ in range(repeats):
            answers = _run(folder, session, inputs)
            for name, stored in wanted.items():
                _check_answer(folder, name, answers[name], stored)
                measures.setdefault(name, Difference()).add(answers[name], stored)
    is_exact = info.get("target") not in QUANTISED
    errors = {
        value.name: measures[value.name].error(is_exact=is_exact)
        for value in session.outputs
        if value.name in measures
    }
    return StoredVerification(sizes or (_num_rows(examples),), errors, tolerance)


def _tolerance(folder: Path, info: dict[str, Any], given: float | None) -> float:
    """Return the given tolerance, or the one that was written."""
    tolerance = info.get("tolerance") if given is None else given
    if isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool) and tolerance > 0:
        return float(tolerance)
    if given is None:
        msg = f"{folder / INFO_FILE} is damaged: its tolerance is {tolerance!r}."
        raise ModelError(msg)
    msg = f"`tolerance` must be a number > 0, got {tolerance!r}."
    raise ValueError(msg)


def _num_rows(examples: Examples) -> int:
    return len(next(iter(examples.inputs.values())))


def _batches(
    examples: Examples, axes: dict[str, int | None], sizes: Iterable[int]
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield inputs, rows round and round, and the stored answers that belong to them."""
    for size in sizes:
        rows = np.arange(size) % _num_rows(examples)
        inputs = {name: array[rows] for name, array in examples.inputs.items()}
        yield (
            inputs,
            {
                name: examples.outputs[name].take(rows, axis)
                for name, axis in axes.items()
                if axis is not None
            },
        )
    # What belongs to a whole batch, as a penalty does, is known for all rows together.
    whole = {name: array for name, array in examples.outputs.items() if axes[name] is None}
    if whole:
        yield examples.inputs, whole


def _row_axes(session: Session, info: dict[str, Any]) -> dict[str, int | None]:
    """Find the axis of each output along which a row has an answer of its own, if it has one."""
    dependent = info.get("batch_dependent", ())
    return {
        value.name: None if value.name in dependent else _row_axis(value, session)
        for value in session.outputs
    }


def _row_axis(value: TensorSpec, session: Session) -> int | None:
    """Find the axis of an output that is called as the inputs' first one, their rows."""
    rows = session.inputs[0].shape[0]
    return value.shape.index(rows) if isinstance(rows, str) and rows in value.shape else None


def _check_outputs(
    folder: Path, session: Session, examples: Examples, axes: dict[str, int | None]
) -> None:
    """Refuse answers for no output, outputs without an answer, and rows without one each."""
    num_rows = _num_rows(examples)
    problems = [f"'output.{name}' is unknown" for name in examples.outputs if name not in axes]
    for value in session.outputs:
        stored, axis = examples.outputs.get(value.name), axes[value.name]
        if stored is None:
            problems.append(f"'output.{value.name}' is missing, not {value.shape}")
        elif axis is not None and (
            stored.ndim != len(value.shape) or stored.shape[axis] != num_rows
        ):
            problems.append(f"'output.{value.name}' is of shape {stored.shape}, not {value.shape}")
    if problems:
        msg = (
            f"{folder / EXAMPLES_FILE} is not of this model with {num_rows} rows: "
            f"{', '.join(problems)}."
        )
        raise ModelError(msg)


def _run(folder: Path, session: Session, inputs: Arrays) -> Arrays:
    try:
        return session.run(**inputs)
    except ValueError as error:
        msg = f"{folder / EXAMPLES_FILE} is not of this model: {error}"
        raise ModelError(msg) from error
    except runtime_errors() as error:
        size = len(next(iter(inputs.values())))
        msg = f"{folder / MODEL_FILE} fails with a batch of {size} rows: {error}"
        raise ModelError(msg) from error


def _check_answer(folder: Path, name: str, answer: NDArray[Any], wanted: NDArray[Any]) -> None:
    if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
        msg = (
            f"{folder / EXAMPLES_FILE} is not of this model: 'output.{name}' is "
            f"{wanted.dtype} {wanted.shape} where the model answers {answer.dtype} {answer.shape}."
        )
        raise ModelError(msg)
