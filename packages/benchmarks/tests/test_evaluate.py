import pytest
import torch
from _tiny import TINY
from torch import Tensor

from moe_benchmarks._bound import TooManyExpertsError
from moe_benchmarks._evaluate import _node_shares, measure
from moe_benchmarks._gates import COMET, TRAINED_GATES, Gate, build_model, inputs
from moe_benchmarks._two_digits import Split, load_two_digits


@pytest.fixture(scope="module")
def split() -> Split:
    return load_two_digits(num_train=100, num_validation=100, num_test=300, seed=0).test


@pytest.mark.parametrize("gate", TRAINED_GATES, ids=lambda gate: gate.name)
def test_hard_routing_keeps_the_bound(gate: Gate, split: Split) -> None:
    model = build_model(gate, TINY, seed=0, mean=split.pixels.mean(0))
    assert 1 <= measure(model, gate, split, hard=True, k=TINY.k).most_experts <= TINY.k


def test_a_broken_bound_is_an_error(split: Split) -> None:
    model = build_model(COMET, TINY, seed=0, mean=split.pixels.mean(0))
    with pytest.raises(TooManyExpertsError, match=r"COMET used 2 experts for one row .*k=1"):
        measure(model, COMET, split, hard=True, k=1)


def test_accuracy_is_the_share_of_right_answers(split: Split) -> None:
    model = build_model(COMET, TINY, seed=0, mean=split.pixels.mean(0))
    metrics = measure(model, COMET, split, hard=False, k=TINY.k)
    logits = model(*inputs(COMET, split)).logits
    for task, accuracy in enumerate(metrics.accuracy):
        right = sum(
            int(row.argmax()) == int(label)
            for row, label in zip(logits[task], split.labels[:, task], strict=True)
        )
        assert accuracy == pytest.approx(right / len(split))


def walk(goes_left: list[bool]) -> list[int]:
    """Nodes that a row visits, by the definition of a heap."""
    nodes = [0]
    while nodes[-1] < len(goes_left):
        nodes.append(2 * nodes[-1] + (1 if goes_left[nodes[-1]] else 2))
    return nodes


@pytest.mark.parametrize("num_splits", [1, 4, 7, 10])
def test_node_shares_count_the_rows_that_pass(num_splits: int) -> None:
    goes_left: Tensor = torch.rand(50, num_splits, generator=torch.Generator().manual_seed(0)) < 0.5
    visited = torch.zeros(2 * num_splits + 1)
    for row in goes_left.tolist():
        visited[walk(row)] += 1
    torch.testing.assert_close(torch.tensor(_node_shares(goes_left)), visited / 50)
