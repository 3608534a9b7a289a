"""Two processes that share each batch train the model that one process trains."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _one_of_two import VARIANTS, trained
from _synthetic import ratings
from _tiny import Run

from moe_benchmarks._experiments._processes import part_of, part_weights


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what two processes trained."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("_one_of_two.py")
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), folder], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return folder


def assert_close(found: Any, wanted: Any) -> None:
    """Compare numbers in lists and dictionaries, up to the order of sums in float32."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_close(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for here, there in zip(found, wanted, strict=True):
            assert_close(here, there)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    else:
        assert found == wanted


@pytest.mark.parametrize(("gate", "search"), VARIANTS)
def test_they_end_with_the_numbers_of_one(gate: str, search: str, two: Path) -> None:
    first, second = (json.loads((two / f"{gate}-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert_close(first, json.loads(json.dumps(trained(gate, search))))


def test_one_process_continues_what_two_began(two: Path) -> None:
    found = json.loads((two / "comet-0.json").read_text())
    assert trained("comet", "exact", two / "comet.checkpoint")["weights"] == found["weights"]


def test_parts_weigh_by_the_rows_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    split = ratings(7).train
    assert part_weights(split, part_of(split)) == [1, 1, 1]
    parts, weights = [], []
    for rank in range(2):
        monkeypatch.setattr("moe_benchmarks._experiments._processes.rank", lambda rank=rank: rank)
        monkeypatch.setattr("moe_benchmarks._experiments._processes.count", lambda: 2)
        parts.append(part_of(split))
        weights.append(part_weights(split, parts[-1]))
    assert [len(part) for part in parts] == [4, 3]
    assert [weight[0] for weight in weights] == pytest.approx([2 * 4 / 7, 2 * 3 / 7])
    assert [weight[2] for weight in weights] == pytest.approx([2 * 4 / 7, 2 * 3 / 7])
    assert split.present[1] is not None
    counted = [int(split.present[1][rank::2].sum()) for rank in range(2)]
    assert [weight[1] for weight in weights] == pytest.approx(
        [2 * each / sum(counted) for each in counted]
    )


def test_torchrun_writes_one_row_with_the_losses_of_one_process(
    tmp_path: Path, moe_bench: Run
) -> None:
    options = ["train", "digits", "--share=0.02", "--epochs=2", "--search=exact"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
         "-m", "moe_benchmarks", *options, f"--out={tmp_path / 'two'}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2: training") == 1, "only one process prints"
    assert moe_bench(*options, f"--out={tmp_path / 'one'}").returncode == 0
    two, one = (json.loads((tmp_path / n / "row.json").read_text()) for n in ("two", "one"))
    for here, there in zip(two["history"], one["history"], strict=True):
        assert here["train_loss"] == pytest.approx(there["train_loss"], rel=1e-4)
        assert here["validation_loss"] == pytest.approx(there["validation_loss"], rel=1e-4)
