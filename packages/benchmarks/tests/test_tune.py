import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _small_study import PLAN, few_ratings, numbers, run_here, wanted
from _tiny import command

from moe_benchmarks._files import DamagedFileError
from moe_benchmarks._tune._errors import StudyError
from moe_benchmarks._tune._plan import StudyPlan, sampled_settings
from moe_benchmarks._tune._storage import (
    claim_study,
    hold_study,
    open_storage,
    open_study,
    prepare,
    read_rows,
    rows_of,
    write_rows,
)
from moe_benchmarks._tune._worker import run_workers
from moe_benchmarks._workers import BusyFolderError


def test_a_study_gives_a_row_a_trial_and_the_same_rows_again(tmp_path: Path) -> None:
    one, two = (run_here(tmp_path / name, PLAN) for name in ("one", "two"))
    assert numbers(one) == wanted(PLAN)
    for first, second in zip(one, two, strict=True):
        assert first["state"] == "complete", first["error"]
        assert first["metrics"] == second["metrics"]
        assert first["settings"] == second["settings"]
    assert read_rows(tmp_path / "one" / "rows.jsonl") == one


def test_more_trials_are_added_and_none_is_run_again(tmp_path: Path) -> None:
    few = run_here(tmp_path, PLAN)
    more = run_here(tmp_path, StudyPlan(**{**vars(PLAN), "trials": 3}))
    assert numbers(more) == wanted(StudyPlan(**{**vars(PLAN), "trials": 3}))
    assert [row for row in more if row["trial"] != 2] == few, "times too: they were not repeated"


def test_rows_of_another_machine_are_continued(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    rows = run_here(here, PLAN)
    there.mkdir()
    for name in ("plan.json", "rows.jsonl"):
        (there / name).write_text((here / name).read_text())
    assert run_here(there, PLAN) == rows


def test_rows_that_another_machine_ran_meanwhile_are_taken_over(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    rows = run_here(there, PLAN)
    claim_study(here, PLAN)
    storage = open_storage(here)
    prepare(storage, PLAN, here)  # all trials wait
    (here / "rows.jsonl").write_text((there / "rows.jsonl").read_text())
    assert write_rows(storage, PLAN, here) == []
    assert read_rows(here / "rows.jsonl") == rows
    assert run_here(here, PLAN) == rows, "times too: they were not repeated"


def test_rows_of_variants_that_are_left_out_are_kept(tmp_path: Path) -> None:
    rows = run_here(tmp_path, PLAN)
    fewer = StudyPlan(**{**vars(PLAN), "gates": ("hash",), "searches": ("ids",)})
    # As `results` has studies: without the journal.
    (tmp_path / "journal.log").unlink()
    assert numbers(run_here(tmp_path, fewer)) == wanted(fewer)
    assert sorted(map(str, read_rows(tmp_path / "rows.jsonl"))) == sorted(map(str, rows))
    assert run_here(tmp_path, PLAN) == rows


def test_a_database_keeps_studies_of_other_settings_apart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    rows = run_here(tmp_path / "one", PLAN, url)
    other = run_here(tmp_path / "other", StudyPlan(**{**vars(PLAN), "seed": 7}), url)
    assert numbers(other) == wanted(PLAN)
    assert all(one["settings"] != two["settings"] for one, two in zip(rows, other, strict=True))
    assert run_here(tmp_path / "again", PLAN, url) == rows


def test_the_variants_of_a_trial_share_what_is_drawn() -> None:
    plain, searched = (
        sampled_settings(PLAN, gate, search, 5).to_dict()
        for gate, search in (("hash", "ids"), ("comet", "exact"))
    )
    other = sampled_settings(PLAN, "hash", "ids", 6).to_dict()
    for name in ("learning_rate", "gamma", "entropy_weight", "search_epochs", "seed"):
        assert plain[name] == searched[name]
    assert plain["learning_rate"] != other["learning_rate"]


def test_a_trial_that_fails_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        msg = "no such luck"
        raise RuntimeError(msg)

    monkeypatch.setattr("moe_benchmarks._tune._worker.run_trial", fail)
    rows = run_here(tmp_path, PLAN)
    assert numbers(rows) == wanted(PLAN)
    assert {(row["state"], row["error"]) for row in rows} == {
        ("failed", "RuntimeError: no such luck")
    }


def test_a_test_loss_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    data = few_ratings()
    seen, rating = data.test.targets
    # The square of such an error is infinite in float32.
    huge = replace(data.test, targets=(seen, torch.full_like(rating, 1e30)))
    plan = StudyPlan(**{**vars(PLAN), "gates": ("hash",), "searches": ("identity",)})
    rows = run_here(tmp_path, plan, data=lambda: replace(data, test=huge))
    assert numbers(rows) == wanted(plan)
    for row in rows:
        assert row["state"] == "failed"
        assert "DivergedError: the test loss is not finite, routing trained" in str(row["error"])


def test_tpe_stays_within_the_grids(tmp_path: Path) -> None:
    plan = StudyPlan(**{**vars(PLAN), "gates": ("comet",), "trials": 3, "sampler": "tpe"})
    rows = run_here(tmp_path, plan)
    assert numbers(rows) == wanted(plan)
    for row in rows:
        settings = row["settings"]
        assert isinstance(settings, dict)
        assert 5e-5 <= settings["learning_rate"] <= 5e-4
        assert settings["gamma"] in (0.01, 0.1, 1.0, 5.0, 10.0)


def test_four_workers_lose_no_trial_and_run_none_twice(tmp_path: Path) -> None:
    plan = StudyPlan(**{**vars(PLAN), "gates": ("hash",), "searches": ("identity",),
                        "trials": 200})  # fmt: skip
    claim_study(tmp_path, plan)
    storage = open_storage(tmp_path)
    prepare(storage, plan, tmp_path)
    polls: list[int] = []
    run_workers(
        tmp_path, None, plan, few_ratings, num_workers=4, stack=1, on_poll=lambda: polls.append(1)
    )
    rows = rows_of(storage, plan)
    assert numbers(rows) == wanted(plan)
    assert all(row["state"] == "complete" for row in rows)
    assert polls


def finished_rows(folder: Path) -> list[dict[str, object]]:
    """Read what a journal has of finished trials, without ending those that were interrupted."""
    gates, searches = ("hash", "top-k"), ("identity",)
    plan = StudyPlan(experiment="digits", gates=gates, searches=searches, trials=16)
    copy = folder.with_name("copy")
    copy.mkdir()
    content = (folder / "journal.log").read_bytes()
    (copy / "journal.log").write_bytes(content[: content.rfind(b"\n") + 1])
    return rows_of(open_storage(copy), plan)


def test_a_study_killed_at_ten_moments_has_every_trial_once(tmp_path: Path) -> None:
    options = ("digits", f"--out={tmp_path}", "--share=0.01", "--epochs=1", "--trials=16",
               "--gates=hash,top-k", "--searches=identity", "--workers=1")  # fmt: skip
    moments = random.Random(0)  # noqa: S311 - any moments will do
    journal = tmp_path / "journal.log"

    def num_finished() -> int:
        return journal.read_text().count('"row"') if journal.exists() else 0

    killed = 0
    for _ in range(10):
        process = subprocess.Popen(
            command("tune", *options), stdout=subprocess.DEVNULL, start_new_session=True
        )
        before = num_finished()
        begin = time.monotonic()
        while num_finished() == before and process.poll() is None:
            assert time.monotonic() - begin < 120, "no trial ends"
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed > 1, "no kill hit a study of which trials had ended"
    earlier = finished_rows(tmp_path)
    assert len(earlier) > 0
    done = subprocess.run(command("tune", *options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "rows.jsonl")
    assert numbers(rows) == [(gate, "identity", n) for gate in ("hash", "top-k") for n in range(16)]
    assert [row for row in rows if numbers([row])[0] in numbers(earlier)] == earlier, "run again"
    assert all(row["state"] == "complete" for row in rows)
    # Same seed, same numbers, however often it was killed.
    again = tmp_path / "again"
    whole = subprocess.run(
        command("tune", *(each.replace(str(tmp_path), str(again)) for each in options)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    for one, other in zip(rows, read_rows(again / "rows.jsonl"), strict=True):
        assert one["metrics"] == other["metrics"]


def test_a_folder_is_one_study_s_and_one_process_s(tmp_path: Path) -> None:
    claim_study(tmp_path / "study", PLAN)
    with pytest.raises(StudyError, match=r"share is 1\.0 there and 0\.5 here"):
        claim_study(tmp_path / "study", StudyPlan(**{**vars(PLAN), "share": 0.5}))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with (
        pytest.raises(StudyError, match="must be a new or empty folder"),
        hold_study(tmp_path / "else", PLAN),
    ):
        pass
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["file"]
    with (
        pytest.raises(StudyError, match="must be a folder, got the file"),
        hold_study(tmp_path / "else" / "file", PLAN),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="a study there is one process's own")
def test_a_command_that_is_refused_leaves_the_plan_as_it_is(tmp_path: Path) -> None:
    more = StudyPlan(**{**vars(PLAN), "trials": 3})
    with (
        hold_study(tmp_path / "new" / "study", PLAN) as held,
        pytest.raises(BusyFolderError, match="another command is at work"),
        hold_study(tmp_path / "new" / "study", more),
    ):
        pass
    assert json.loads((tmp_path / "new" / "study" / "plan.json").read_text()) == json.loads(
        json.dumps(held.to_dict())
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "imagenet"}, "`experiment` must be among"),
        ({"gates": ("hash", "best")}, r"`gates` must be among .* got \['best'\]"),
        ({"searches": ("ids",), "gates": ("comet",)}, "`searches` must be something that"),
        ({"trials": 0}, "`trials` must be >= 1"),
        ({"share": 0.0}, r"`share` must be in \(0, 1\]"),
        ({"sampler": "grid"}, "`sampler` must be among"),
    ],
)
def test_plans_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyPlan(**{**vars(PLAN), **changes})


def test_a_torn_line_of_the_journal_costs_no_more_than_its_trial(tmp_path: Path) -> None:
    rows, journal = run_here(tmp_path, PLAN), tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes()[:-20])  # the last trial's end
    more = StudyPlan(**{**vars(PLAN), "trials": 3})
    assert numbers(run_here(tmp_path, more)) == wanted(more)
    again = run_here(tmp_path, more)
    assert [row for row in again if row["trial"] != 2] == rows


def test_a_damaged_journal_is_named_and_can_be_deleted(tmp_path: Path) -> None:
    rows, journal = run_here(tmp_path, PLAN), tmp_path / "journal.log"
    content = journal.read_bytes()
    for old, new in ((b'"', b"\xff"), (b":", b"\n"), (b"directions", b"direktions")):
        journal.write_bytes(content.replace(old, new, 1))
        with pytest.raises(StudyError, match=r"journal\.log is damaged .* rows\.jsonl is contin"):
            open_study(tmp_path, PLAN)
    journal.unlink()
    assert run_here(tmp_path, PLAN) == rows


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"gate": 1, "search": 2, "trial": 3, "state": 4}) + "\n{")
    with pytest.raises(DamagedFileError, match=r"rows.jsonl, line 2, is damaged"):
        read_rows(path)
    path.write_bytes(b'{"gate": "\xff"}')
    with pytest.raises(DamagedFileError, match=r"rows.jsonl is damaged"):
        read_rows(path)
