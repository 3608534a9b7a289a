"""Several folders, as of several machines, share a study in a database or behind a proxy."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _small_study import PLAN, few_ratings, numbers, run_here, wanted

from moe_benchmarks._tune._errors import StudyError
from moe_benchmarks._tune._storage import claim_study, open_storage, open_study, rows_of
from moe_benchmarks._tune._trial import take_trial
from moe_benchmarks._tune._worker import work

SERVER = """
import sys
from optuna.storages import RDBStorage, run_grpc_proxy_server
run_grpc_proxy_server(RDBStorage(sys.argv[1]), host="localhost", port=int(sys.argv[2]))
"""


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.sqlite'}"


def test_a_trial_that_another_folder_runs_is_left_to_it(tmp_path: Path, database: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plan = claim_study(one, PLAN)
    first = open_study(one, plan, database)
    taken = take_trial(first, plan, "top-k", "identity")
    assert taken is not None
    rows = run_here(two, PLAN, database)
    running = ("top-k", "identity", taken.number)
    assert numbers(rows) == [each for each in wanted(PLAN) if each != running]
    taken.finish({**rows[-1], "trial": taken.number})
    assert numbers(run_here(two, PLAN, database)) == wanted(PLAN)


def test_a_trial_that_a_kill_left_is_run_again_by_its_own_folder(
    tmp_path: Path, database: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    plan = claim_study(one, PLAN)
    assert take_trial(open_study(one, plan, database), plan, "hash", "ids") is not None
    left = set(wanted(PLAN)) - set(numbers(run_here(two, PLAN, database)))
    assert len(left) == 1
    again = claim_study(one, PLAN)
    assert again == plan
    storage = open_study(one, again, database)
    work(storage, again, few_ratings)
    assert numbers(rows_of(storage, again)) == wanted(PLAN)


@pytest.fixture
def proxy(database: str) -> Iterator[str]:
    pytest.importorskip("grpc", reason="needs grpcio")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVER, database, str(port)])
    yield f"grpc://localhost:{port}"
    server.terminate()
    server.wait()


def test_a_study_behind_a_proxy(tmp_path: Path, proxy: str) -> None:
    assert numbers(run_here(tmp_path / "one", PLAN, proxy)) == wanted(PLAN)
    assert numbers(run_here(tmp_path / "two", PLAN, proxy)) == wanted(PLAN)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////missing/folder/study.sqlite"])
def test_a_storage_that_cannot_be_opened_is_said_in_a_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(StudyError, match=f"`--storage` '{url}' cannot be opened: .+") as caught:
        open_storage(tmp_path, url)
    assert "\n" not in str(caught.value)


def test_a_proxy_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc", reason="needs grpcio")
    monkeypatch.setattr("moe_benchmarks._tune._remote.SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(StudyError, match=r"'grpc://localhost:1' cannot be opened: .*timeout"):
        open_storage(tmp_path, "grpc://localhost:1")
