from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _tiny import TINY

from moe_benchmarks._gates import COMET_SEARCHED, TRAINED_GATES, Gate
from moe_benchmarks._train import Epoch, TrainedModel, train
from moe_benchmarks._two_digits import TwoDigits, load_two_digits


@pytest.fixture(scope="module")
def data() -> TwoDigits:
    return load_two_digits(
        num_train=TINY.num_train,
        num_validation=TINY.num_validation,
        num_test=TINY.num_test,
        seed=TINY.seed,
    )


class StopError(Exception):
    """Stands for whatever ends a process."""


def train_until(gate: Gate, data: TwoDigits, folder: Path, last: int) -> TrainedModel:
    def on_epoch(number: int, _epoch: Epoch) -> None:
        if number == last:
            raise StopError

    return train(gate, TINY, 0, data, folder, on_epoch=on_epoch)


@pytest.mark.parametrize("gate", TRAINED_GATES, ids=lambda gate: gate.name)
def test_an_interrupted_training_ends_with_the_same_bits(
    gate: Gate, data: TwoDigits, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train_until(gate, data, tmp_path / "whole", last=-1)
    for last in (0, 1):
        with pytest.raises(StopError):
            train_until(gate, data, tmp_path / "parts", last)
    parts = train_until(gate, data, tmp_path / "parts", last=-1)
    assert parts.history == whole.history
    assert parts.searches == whole.searches
    assert parts.best_epoch == whole.best_epoch
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name


def test_training_learns(data: TwoDigits, tmp_path: Path) -> None:
    settings = replace(TINY, epochs=8)
    trained = train(TRAINED_GATES[1], settings, 0, data, tmp_path, on_epoch=lambda *_: None)
    first, best = trained.history[0], trained.history[trained.best_epoch]
    assert best.validation_loss_hard < first.validation_loss_hard < 2.31, "ln 10 is chance"


def test_the_search_reports_each_task(data: TwoDigits, tmp_path: Path) -> None:
    trained = train(COMET_SEARCHED, TINY, 0, data, tmp_path, on_epoch=lambda *_: None)
    assert [search.task for search in trained.searches] == ["top left", "bottom right"]
    for search in trained.searches:
        assert search.cost_after <= search.cost_before
        if not search.accepted:
            assert search.num_moved == 0
