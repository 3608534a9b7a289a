"""Sentences of the report that depend on the results, whichever way they came out."""

from statistics import fmean
from typing import Any, NamedTuple

from scipy import stats

from moe_benchmarks._bootstrap import LEVEL
from moe_benchmarks._gates import COMET, COMET_PLUS, COMET_SEARCHED
from moe_benchmarks._latency import ALL_EXPERTS, SERVED, SPARSE
from moe_benchmarks._results import Mean, Result, mean_of, reported_results, validation_loss


class GateRow(NamedTuple):
    """One row of the table of gates; means over seeds with standard errors."""

    name: str
    validation_loss: Mean
    validation_loss_hard: Mean
    accuracy_trained: list[Mean]  # one a task, test split
    accuracy_hard: list[Mean]
    experts_trained: Mean  # a row, test split
    most_experts_trained: int
    experts_hard: Mean
    most_experts_hard: int


def gate_row(name: str, results: list[Result]) -> GateRow:
    """Summarise a gate's results."""

    def metric(split_and_routing: str, key: str) -> list[Any]:
        return [result["metrics"][split_and_routing][key] for result in results]

    def accuracy(routing: str) -> list[Mean]:
        return [mean_of(task) for task in zip(*metric(routing, "accuracy"), strict=True)]

    return GateRow(
        name=name,
        validation_loss=mean_of(metric("validation_trained", "loss")),
        validation_loss_hard=mean_of(metric("validation_hard", "loss")),
        accuracy_trained=accuracy("test_trained"),
        accuracy_hard=accuracy("test_hard"),
        experts_trained=mean_of(metric("test_trained", "experts_per_row")),
        most_experts_trained=max(metric("test_trained", "most_experts")),
        experts_hard=mean_of(metric("test_hard", "experts_per_row")),
        most_experts_hard=max(metric("test_hard", "most_experts")),
    )


def gate_finding(reported: dict[str, list[Result]]) -> str:
    """Say which gate has the lowest validation loss, and whether COMET+ is apart from it.

    A difference is more than chance by Student's t of the pairs, at 5 %.
    """
    # COMET itself is never ahead of COMET+, which is one of the two.
    losses = {
        gate: [validation_loss(each) for each in some]
        for gate, some in reported.items()
        if gate != COMET.name
    }
    best, second = sorted(losses, key=lambda gate: fmean(losses[gate]))[:2]
    behind = second if best == COMET_PLUS else COMET_PLUS
    lead = f"{best} has the lowest validation loss here"
    lead += "" if best == COMET_PLUS else f", not {COMET_PLUS}"
    pairs = zip(losses[behind], losses[best], strict=True)
    difference = mean_of([more - less for more, less in pairs])
    text = (
        f"{lead}: {behind} is {difference.value:.3f} ± {difference.standard_error:.3f} nats behind"
    )
    if len(losses[best]) == 1:
        return f"{text}, on one seed, which cannot tell them apart."
    # Of few seeds a standard error is itself a guess: two of them are not 95 %.
    least = float(stats.t.ppf((1 + LEVEL) / 2, len(losses[best]) - 1))
    apart = difference.value > least * difference.standard_error
    return f"{text}{'' if apart else ', which is not more than chance'}, paired by seed."


def search_finding(results: list[Result]) -> str:
    """Say what the permutation search gained, or that it gained nothing."""
    plain = [result for result in results if result["gate"] == COMET.name]
    searched = [result for result in results if result["gate"] == COMET_SEARCHED.name]
    gains = [
        validation_loss(before) - validation_loss(after)
        for before, after in zip(plain, searched, strict=True)
    ]
    better = sum(gain > 0 for gain in gains)
    searches = [search for result in searched for search in result["searches"]]
    confirmed = sum(search["accepted"] for search in searches)
    own = mean_of(gains)
    plus, alone = (_test_accuracies(results, gate) for gate in (COMET_PLUS, COMET.name))
    on_test = mean_of([100 * (after - before) for after, before in zip(plus, alone, strict=True)])
    verdict = (
        f"better in validation loss by {mean_of([max(gain, 0.0) for gain in gains]).value:.4f} nats"
        if better
        else "COMET itself here: the search gained nothing that lasted"
    )
    return (
        f"{confirmed} of {len(searches)} searches were confirmed. Training on with what they found "
        f"ended with a lower validation loss than {COMET.name} for {better} of {len(gains)} seeds "
        f"(mean difference {own.value:.4f} ± {own.standard_error:.4f} nats, positive is lower). "
        f"{COMET_PLUS}, the better of the two for each seed, is {verdict}. On the test rows, which "
        f"chose nothing, its accuracy differs from {COMET.name}'s by {on_test.value:+.2f} ± "
        f"{on_test.standard_error:.2f} percentage points."
    )


def _test_accuracies(results: list[Result], gate: str) -> list[float]:
    """Mean over the tasks for each seed, with hard routing."""
    return [
        fmean(result["metrics"]["test_hard"]["accuracy"])
        for result in reported_results(results)[gate]
    ]


def speed_finding(latency: dict[str, Any]) -> str:
    """Say how much faster the selected experts are than all of them."""
    milliseconds = latency["milliseconds"]
    size = latency["batch_sizes"][-1]
    torch_ratio = milliseconds[ALL_EXPERTS][-1] / milliseconds[SPARSE][-1]
    served_ratio = milliseconds[ALL_EXPERTS][-1] / milliseconds[SERVED][-1]
    single = milliseconds[ALL_EXPERTS][0] / milliseconds[SERVED][0]
    return (
        f"On {size} rows the selected experts take {1 / torch_ratio:.0%} of the time of all of "
        f"them in PyTorch ({torch_ratio:.1f} times as fast), and {1 / served_ratio:.0%} in ONNX "
        f"Runtime ({served_ratio:.1f} times as fast); on one row ONNX Runtime is {single:.1f} "
        f"times as fast as PyTorch with all experts."
    )
