import copy
from typing import Any

import numpy as np
import pytest

from moe_benchmarks._gates import REPORTED_GATES, TRAINED_GATES
from moe_benchmarks._report._findings import gate_finding, search_finding, speed_finding
from moe_benchmarks._results import best_to_serve, mean_of, reported_results, validation_loss


def result(gate: str, seed: int, loss: float) -> dict[str, Any]:
    metrics = {
        f"{split}_{routing}": {"loss": loss, "accuracy": [0.5, 0.75]}
        for split in ("validation", "test")
        for routing in ("trained", "hard")
    }
    searches = [{"accepted": True}] if gate == "COMET with search" else []
    return {"gate": gate, "seed": seed, "metrics": metrics, "searches": searches}


def results(comet: list[float], searched: list[float]) -> list[dict[str, Any]]:
    losses = {"COMET": comet, "COMET with search": searched}
    return [
        result(gate.name, seed, losses.get(gate.name, [9.0] * len(comet))[seed])
        for gate in TRAINED_GATES
        for seed in range(len(comet))
    ]


def test_comet_plus_is_never_worse_than_comet_in_validation_loss() -> None:
    reported = reported_results(results([0.3, 0.3, 0.3], [0.2, 0.4, 0.3]))
    assert [validation_loss(each) for each in reported["COMET+"]] == [0.2, 0.3, 0.3]
    assert [each["gate"] for each in reported["COMET+"]] == ["COMET with search", "COMET", "COMET"]


def test_the_lowest_validation_loss_is_served() -> None:
    assert validation_loss(best_to_serve(reported_results(results([0.3], [0.2])))) == 0.2


def test_the_finding_says_so_when_the_search_gains_nothing() -> None:
    text = search_finding(results([0.3, 0.3], [0.4, 0.3]))
    assert "gained nothing that lasted" in text
    assert "lower validation loss than COMET for 0 of 2 seeds" in text


def test_the_finding_says_what_the_search_gains() -> None:
    text = search_finding(results([0.3, 0.3], [0.2, 0.5]))
    assert "lower validation loss than COMET for 1 of 2 seeds" in text
    assert "mean difference -0.0500 ± 0.1500 nats" in text
    assert "better in validation loss by 0.0500 nats" in text
    assert "+0.00 ± 0.00 percentage points" in text


def test_the_finding_says_when_another_gate_is_ahead() -> None:
    every = results([10.0, 10.1, 10.2], [10.0, 10.1, 10.2])
    text = gate_finding(reported_results(every))
    assert "lowest validation loss here, not COMET+" in text
    assert "COMET+ is 1.100 ± 0.058 nats behind, paired by seed" in text


def test_the_finding_calls_chance_chance() -> None:
    text = gate_finding(reported_results(results([8.0, 9.9], [8.0, 9.9])))
    assert text.startswith("COMET+ has the lowest validation loss here")
    assert "not more than chance" in text


def test_three_standard_errors_of_three_seeds_are_chance() -> None:
    # The other gates are at 9, so 0.5, 0.75 and 1.5 behind: t = 3.05, chance of 9 %.
    every = results([8.5, 8.25, 7.5], [8.5, 8.25, 7.5])
    text = gate_finding(reported_results(every))
    assert "0.917 ± 0.300 nats behind, which is not more than chance" in text


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_equal_gates_are_seldom_called_apart(num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    apart = 0
    for _ in range(600):
        losses = 8 + rng.normal(size=num_seeds) + rng.normal(size=(5, num_seeds))
        reported = {
            gate: [result(gate, seed, loss) for seed, loss in enumerate(each)]
            for gate, each in zip(REPORTED_GATES, losses, strict=True)
        }
        apart += "not more than chance" not in gate_finding(reported)
    # 5 to 6 % are meant, since the best is compared; 55 at 6 % is an accident of 1 in 1000.
    assert apart < 55


def test_one_seed_tells_no_gates_apart() -> None:
    assert "one seed" in gate_finding(reported_results(results([0.1], [0.1])))


def test_choosing_does_not_change_the_results() -> None:
    before = results([0.3], [0.2])
    after = copy.deepcopy(before)
    reported_results(after)
    assert after == before


def test_the_speed_finding_follows_the_times() -> None:
    times = {"PyTorch, all experts": [1.0, 8.0], "PyTorch, selected": [2.0, 2.0]}
    times["ONNX Runtime, selected"] = [0.5, 16.0]
    text = speed_finding({"milliseconds": times, "batch_sizes": [1, 100]})
    assert "On 100 rows" in text
    assert "4.0 times as fast" in text
    assert "0.5 times as fast" in text
    assert "2.0 times as fast as PyTorch with all experts" in text


def test_the_mean_of_one_seed_has_no_error() -> None:
    assert mean_of([2.0]) == (2.0, 0.0)
    assert mean_of([1.0, 3.0]) == pytest.approx((2.0, 1.0))
