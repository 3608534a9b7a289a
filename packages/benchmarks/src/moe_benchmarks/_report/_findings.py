"""Sentences of the report that depend on the results, whichever way they came out."""

from statistics import fmean
from typing import Any, NamedTuple

from moe_benchmarks._gates import COMET, COMET_PLUS, COMET_SEARCHED
from moe_benchmarks._latency import ALL_EXPERTS, SERVED, SPARSE
from moe_benchmarks._results import Mean, Result, mean_of, reported_results, validation_loss

# Standard errors from which on a difference is called one.
APART = 2.0


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
    """Say which gate has the lowest validation loss, and whether COMET+ is apart from it."""
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
    apart = difference.value > APART * difference.standard_error
    return f"{text}{'' if apart else ', which is not more than chance'}, seed by seed."


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
    kept = mean_of([max(gain, 0.0) for gain in gains]).value
    own = mean_of(gains)
    verdict = (
        f"{COMET_PLUS} is therefore {kept:.4f} nats better than {COMET.name} in validation loss "
        f"on average, and never worse"
        if better
        else f"{COMET_PLUS} is therefore {COMET.name} itself here: no better, and no worse"
    )
    return (
        f"{confirmed} of {len(searches)} searches found a permutation whose gain also showed on "
        f"training rows that they had not seen. Training on with it ended with the lower "
        f"validation loss for {better} of {len(gains)} seeds (mean difference {own.value:+.4f} ± "
        f"{own.standard_error:.4f} nats, positive is better). {verdict}. On the test rows "
        f"{COMET_PLUS} reads {_test_accuracy(results, COMET_PLUS):.1%} of the digits and "
        f"{COMET.name} {_test_accuracy(results, COMET.name):.1%}."
    )


def _test_accuracy(results: list[Result], gate: str) -> float:
    """Mean over seeds and tasks, with hard routing."""
    chosen = reported_results(results)[gate]
    return fmean(share for result in chosen for share in result["metrics"]["test_hard"]["accuracy"])


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
