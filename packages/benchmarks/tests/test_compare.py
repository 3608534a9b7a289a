"""The terminal says the same of a study as its report, and compares with what is asked for."""

import json
from pathlib import Path

import pytest
from _rows import failed, study
from _tiny import Run

from moe_benchmarks._differences import difference


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Hash is far behind COMET, and Top-k is close to it; all trials of ReLU failed."""
    variants = [
        study(30, mean=0.60, seed=1),
        study(30, mean=0.60, seed=2, gate="top-k"),
        study(30, mean=0.90, seed=3, gate="hash"),
        study(30, mean=0.89, seed=3, gate="hash", search="ids"),
        [failed(number, gate="relu") for number in range(3)],
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for each in variants for row in each))
    return path


def lines(output: str) -> dict[str, list[str]]:
    """Cells of each variant, by its name; a cell of several lines is joined."""
    found: dict[str, list[str]] = {}
    cells: list[str] = []
    for line in output.splitlines():
        if not line.startswith("│"):
            continue
        parts = [part.strip() for part in line.strip("│").split("│")]
        if parts[1]:
            cells = found[parts[0]] = parts[1:]
        else:
            cells[:] = [f"{old} {new}".strip() for old, new in zip(cells, parts[1:], strict=True)]
    return found


def test_each_variant_is_compared_with_the_one_that_is_asked_for(
    rows: Path, moe_bench: Run
) -> None:
    done = moe_bench("compare", str(rows.parent), "--to=hash")
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert next(iter(found)) == "Hash"
    assert found["Hash"][-1] == "baseline"
    assert found["COMET"][-1] == found["Top-k"][-1] == "better"
    assert found["ReLU"][0] == "0 of 3"
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    by_gate = {
        gate: [row for row in read if (row["gate"], row["search"]) == (gate, "identity")]
        for gate in ("comet", "hash")
    }
    gap = difference(by_gate["comet"], by_gate["hash"])
    assert found["COMET"][2].startswith(f"{gap.value:+.4f}")


def test_without_a_baseline_the_best_is_it_and_no_winner_is_made_up(
    rows: Path, moe_bench: Run
) -> None:
    done = moe_bench("compare", str(rows))
    found = lines(done.stdout)
    assert next(iter(found.values()))[-1] == "baseline"
    assert {found[name][-1] for name in ("COMET", "Top-k")} == {"baseline", "not told apart"}
    assert found["Hash"][-1] == "worse"
    assert "No winner" in done.stdout
    hard = moe_bench("compare", str(rows), "--routing=hard")
    assert "hard routing" in hard.stdout
    assert "No winner" not in hard.stdout, "the sentence is about routing as trained"


def test_a_study_of_failures_only_says_so(tmp_path: Path, moe_bench: Run) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(failed(number)) + "\n" for number in range(2)))
    assert "all 2 trials failed" in moe_bench("compare", str(path)).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to=softmax",), "`--to` must be a variant of"),
        (("--to=hash+exact",), "got 'hash+exact'"),
        (("--to=relu",), "all 3 trials of relu failed"),
        (("--routing=soft",), "'soft' is not one of"),
    ],
)
def test_a_wrong_baseline_is_named(
    options: tuple[str, ...], message: str, rows: Path, moe_bench: Run
) -> None:
    done = moe_bench("compare", str(rows), *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_study_of_language_is_left_to_the_report(tmp_path: Path, moe_bench: Run) -> None:
    row = {"task": "CoLA", "variant": "dense", "seed": 0, "scores": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    done = moe_bench("compare", str(tmp_path))
    assert done.returncode == 2
    assert "studies of `distil` are compared by `moe-bench report`" in done.stderr


def test_a_missing_or_empty_study_is_named(tmp_path: Path, moe_bench: Run) -> None:
    assert "cannot read" in moe_bench("compare", str(tmp_path / "nowhere")).stderr
    (tmp_path / "rows.jsonl").write_text("")
    assert "no result row" in moe_bench("compare", str(tmp_path)).stderr
