"""Epochs are written where people look at them, once each, however often a run is continued."""

import csv
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from moe_benchmarks._cli._epoch_log import EpochLog
from moe_benchmarks._experiments._run import Epoch

TASKS = ("watched", "rating")


def epoch(loss: float) -> Epoch:
    return Epoch(
        train_loss=loss,
        penalty=0.25,
        validation_loss=loss + 1,
        experts_per_row=2.5,
        union_per_row=3.5,
        dead_experts=[0, 4],
        largest_load=[0.25, 0.75],
        seconds=0.5,
    )


def test_a_line_says_losses_loads_and_speed(tmp_path: Path) -> None:
    with closing(EpochLog(tmp_path, TASKS, 1000, tensorboard=False)) as log:
        assert log.write(7, epoch(0.5)) == (
            "epoch 7: training 0.5000, penalty 0.2500, validation 1.5000, 2.50 experts a row, "
            "0 + 4 dead, busiest 75%, 2,000 rows/s"
        )
    assert not (tmp_path / "tensorboard").exists()


def test_a_continued_run_has_each_epoch_once_in_both_places(tmp_path: Path) -> None:
    # A run that was stopped in its fourth epoch, whose checkpoint is of the second.
    for losses in ([3.0, 2.0, 9.0], [3.0, 2.0, 1.0, 0.5]):
        with closing(EpochLog(tmp_path, TASKS, 1000, tensorboard=True)) as log:
            for number, loss in enumerate(losses, 1):
                log.write(number, epoch(loss))
    with (tmp_path / "epochs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), float(row["train_loss"])) for row in rows] == [
        (1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)
    ]  # fmt: skip
    assert float(rows[0]["rating/dead_experts"]) == 4
    assert float(rows[0]["rows_per_second"]) == 2000
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    seen = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert seen == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]
    assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"}


def test_another_table_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "epochs.csv").write_text("name,age\nAda,36\n")
    with pytest.raises(ValueError, match="table of increasing steps"):
        EpochLog(tmp_path, TASKS, 10, tensorboard=False)
