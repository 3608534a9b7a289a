"""Many clients at a time, each of whose answers is compared with one computed before."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from _clients import Arrays, Client
from numpy.typing import NDArray

# So that a run ends, whatever the clock says.
MAX_REQUESTS = 200_000


class Question(NamedTuple):
    """A request, and ONNX Runtime's answer to it."""

    feeds: Arrays
    answer: Arrays


@dataclass
class Tally:
    """What came of one client's requests."""

    protocol: str
    seconds: list[float] = field(default_factory=list)
    rows: int = 0
    wrong: int = 0
    largest_difference: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, answer: Arrays, question: Question, seconds: float) -> None:
        """Count an answer, and compare it."""
        self.seconds.append(seconds)
        self.rows += len(next(iter(question.feeds.values())))
        apart = difference(answer, question.answer)
        self.wrong += apart != 0
        self.largest_difference = max(self.largest_difference, apart)


def difference(answer: Arrays, wanted: Arrays) -> float:
    """Largest difference of any output; infinite where names, shapes or types differ."""
    if answer.keys() != wanted.keys():
        return float("inf")
    return max(_apart(answer[name], wanted[name]) for name in wanted)


def _apart(answer: NDArray[Any], wanted: NDArray[Any]) -> float:
    if answer.shape != wanted.shape or answer.dtype != wanted.dtype:
        return float("inf")
    apart = np.abs(answer.astype(np.float64) - wanted.astype(np.float64)).max(initial=0.0)
    # A NaN would be lost in a maximum.
    return float("inf") if np.isnan(apart) else float(apart)


def run_clients(
    clients: Sequence[Callable[[], Client]], questions: Sequence[Question], *, seconds: float
) -> list[Tally]:
    """Let all clients ask at the same time; each opens its connection in its own thread."""
    tallies: list[Tally] = []
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_ask_until, args=(open_client, questions, end, seed, tallies))
        for seed, open_client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(tallies) < len(clients):
        msg = f"{len(clients) - len(tallies)} of {len(clients)} clients ended early"
        raise RuntimeError(msg)
    return tallies


def _ask_until(
    open_client: Callable[[], Client],
    questions: Sequence[Question],
    end: float,
    seed: int,
    tallies: list[Tally],
) -> None:
    client = open_client()
    tally = Tally(client.protocol)
    generator = random.Random(seed)  # noqa: S311 - which request comes next is no secret
    for _ in range(MAX_REQUESTS):
        if time.monotonic() >= end:
            break
        question = generator.choice(questions)
        start = time.perf_counter()
        try:
            answer = client.ask(question.feeds)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted and shown
            tally.failures.append(f"{type(error).__name__}: {error}")
            continue
        tally.add(answer, question, time.perf_counter() - start)
    tallies.append(tally)


def report(tallies: Sequence[Tally], *, seconds: float) -> str:
    """Sum up some clients in a line."""
    times = np.sort(np.concatenate([each.seconds for each in tallies])) * 1000
    rows = sum(each.rows for each in tallies)
    middle, high = np.percentile(times, [50, 99])
    return (
        f"{len(tallies)} clients, {len(times)} answers in {seconds:g} s: "
        f"{len(times) / seconds:.0f} requests/s, {rows / seconds:.0f} rows/s, "
        f"latency p50 {middle:.1f} ms, p99 {high:.1f} ms; "
        f"{sum(each.wrong for each in tallies)} wrong, largest difference "
        f"{max(each.largest_difference for each in tallies):g}, "
        f"{sum(len(each.failures) for each in tallies)} failed"
    )
