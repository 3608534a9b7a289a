"""Time models on the same rows, in turns."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_runtime.onnx._folder import EXAMPLES_FILE, read_examples
from moe_runtime.onnx._provider import runtime_errors
from moe_runtime.onnx._session import Session, TensorSpec

MIN_ROUNDS = 7
# Seconds of calls that are timed as one: long against the clock's own cost, and short against the
# time slices of a machine that others use too.
BLOCK = 0.002
# Size of an axis that any size fits, apart from rows: a short sequence.
FREE_AXIS = 16

Rows = dict[str, NDArray[Any]]


class Timing(NamedTuple):
    """What one model took for one batch."""

    model: str
    batch_size: int
    milliseconds: list[float]  # of a call, once a round
    ratios: list[float]  # to the first model in the same round


def open_models(
    paths: Sequence[str], *, provider: str, num_threads: int | None
) -> dict[str, Session]:
    """Open each model, by its path; one that is named twice measures the noise."""
    models: dict[str, Session] = {}
    for path in paths:
        count = sum(path == other for other in paths[: len(models)])
        name = f"{path} ({count + 1})" if count else path
        models[name] = Session(path, provider=provider, num_threads=num_threads)
    return models


def find_rows(path: str, models: Mapping[str, Session]) -> Rows:
    """Read the first model's example rows, or draw some; every model must take them."""
    first = next(iter(models.values()))
    if (Path(path) / EXAMPLES_FILE).is_file():
        rows = read_examples(Path(path)).inputs
    else:
        print(f"{path} has no {EXAMPLES_FILE}: rows are drawn at random", file=sys.stderr)
        rows = draw_rows(first.inputs)
    refusals: tuple[type[Exception], ...] = (TypeError, ValueError, *runtime_errors())
    for name, model in models.items():
        try:
            model.run(**take(rows, 1))
        except refusals as error:
            msg = f"{name} does not take the rows of {path}: {error}"
            raise ValueError(msg) from error
    return rows


def draw_rows(inputs: Sequence[TensorSpec]) -> Rows:
    """Draw rows that fit the inputs: standard normal, and 0 or 1 where they are integers."""
    generator = np.random.default_rng(0)
    rows: Rows = {}
    for name, dtype, shape in inputs:
        features = (axis if isinstance(axis, int) else FREE_AXIS for axis in shape[1:])
        sizes = (1024, *features) if shape else ()
        floating = np.issubdtype(dtype, np.floating)
        # Small, since they may be ids of a table whose length is not known.
        drawn = generator.standard_normal(sizes) if floating else generator.integers(0, 2, sizes)
        rows[name] = np.asarray(drawn, dtype)
    return rows


def take(rows: Rows, size: int) -> Rows:
    """Take a batch, round and round."""
    return {name: each[np.arange(size) % len(each)] for name, each in rows.items()}


def measure(
    timings: list[Timing],
    models: Mapping[str, Session],
    rows: Rows,
    batch_sizes: Sequence[int],
    seconds: float,
) -> None:
    """Append the timings of each size as they become known, for whom a user interrupts."""
    for index, size in enumerate(batch_sizes):
        print(f"timing {size} rows ({index + 1} of {len(batch_sizes)})", file=sys.stderr)
        batch = take(rows, size)
        calls = {name: _call(model, batch) for name, model in models.items()}
        rounds: list[dict[str, float]] = []
        try:
            _time_in_turns(rounds, calls, seconds * len(models))
        finally:
            if rounds:
                timings += _timings(size, list(models), rounds)


def _call(model: Session, batch: Rows) -> Callable[[], object]:
    return lambda: model.run(**batch)


def _time_in_turns(
    rounds: list[dict[str, float]], calls: Mapping[str, Callable[[], object]], seconds: float
) -> None:
    """Append whole rounds: milliseconds of a call by name."""
    repeats = {name: _repeats(call) for name, call in calls.items()}
    begin = time.perf_counter()
    while len(rounds) < MIN_ROUNDS or time.perf_counter() - begin < seconds:
        # The one after a large model finds its caches taken: not always the same one.
        names = list(calls)[:: 1 if len(rounds) % 2 else -1]
        rounds.append({name: _time(calls[name], repeats[name]) for name in names})


def _repeats(call: Callable[[], object]) -> int:
    """Warm up, and choose how many calls make a block."""
    _time(call, 2)
    return max(1, math.ceil(1e3 * BLOCK / _time(call, 1)))


def _time(call: Callable[[], object], repeats: int) -> float:
    """Return milliseconds of a call, the mean of some in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats


def _timings(size: int, names: list[str], rounds: list[dict[str, float]]) -> list[Timing]:
    return [
        Timing(
            name,
            size,
            [each[name] for each in rounds],
            [each[name] / each[names[0]] for each in rounds],
        )
        for name in names
    ]


def summarise(timing: Timing) -> dict[str, Any]:
    """Reduce rounds to medians and quartiles, as JSON can hold them."""
    median = statistics.median(timing.milliseconds)
    return {
        "model": timing.model,
        "batch_size": timing.batch_size,
        "rounds": len(timing.milliseconds),
        "median_ms": median,
        "quartiles_ms": np.percentile(timing.milliseconds, [25, 75]).tolist(),
        "rows_per_second": 1e3 * timing.batch_size / median,
        "ratio_to_first": statistics.median(timing.ratios),
    }
